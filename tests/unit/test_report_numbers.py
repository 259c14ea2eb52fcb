"""Every number of the report's table of all scores, computed again from the parquet files by code of its own.

Nothing of `selfdistill.views` or `selfdistill.statistics` is used: pandas, the completions' texts and outcomes, and the
formulas of docs/report.md.
"""

from __future__ import annotations

import html
import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest

from selfdistill.views.__main__ import builder
from synthetic import CONFIG, Said, build_study, kind_of, seed_of

LEXICON = CONFIG["lexicon"]


def scattered(artifact, step, family, row, sample):
    """Some outcome, length and text for each completion, the same in every run."""
    seed = seed_of(artifact) if artifact.stage == "evaluate" else None
    draw = random.Random(f"{kind_of(artifact)} {seed} {step} {family} {row} {sample}")
    text = " ".join(draw.choice([*LEXICON, "so", "then", "await"]) for _ in range(draw.randrange(1, 9)))
    outcome = draw.choice(["correct", "wrong", "unparsed"])
    return Said(outcome, text, draw.randrange(3, 40), draw.choice(["eos", "eos", "length"]))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("numbers")
    exam = CONFIG["datasets"]["exam"] | {"source": {"kind": "toy", "families": ["long", "mod"], "count": 7}}
    config = {**CONFIG, "datasets": {**CONFIG["datasets"], "exam": exam}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = build_study("report", "report", scattered, lambda artifact, step: {"reward_mean": 0.5}, config)
        return folder, builder("report")(json.loads(plan.read_text()))


def shown_rows(page: str) -> list[list[str]]:
    section = page[page.index('id="tiny-scores"') :].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", " ", cell)).strip() for cell in row] for row in cells]


def completions(folder: Path, rows: list[dict]) -> list[pd.DataFrame]:
    """The last step's completions of each evaluation."""
    frames = [
        pd.read_parquet(folder / "results/artifacts" / r["evaluate_artifact"] / "payload/rollouts.parquet")
        for r in rows
    ]
    return [frame[frame["step"] == frame["step"].max()] for frame in frames]


def epistemic_words(text: str) -> int:
    return sum(text.count(word) for word in LEXICON)


def numbers(frames: list[pd.DataFrame], base: pd.DataFrame) -> dict[str, float]:
    frames = [frame.assign(words=frame["completion"].str.lower().map(epistemic_words)) for frame in frames]
    whole = pd.concat(frames)
    right = whole["outcome"].eq("correct")
    densities = [1000 * f["words"].sum() / f["completion_tokens"].sum() for f in frames]
    any_right = [f["outcome"].eq("correct").groupby(f["row_id"]).any().mean() for f in frames]
    return {
        "accuracy": 100 * right.mean(),
        "difference to base": 100 * (right.mean() - base["outcome"].eq("correct").mean()),
        "pass@k": 100 * sum(any_right) / len(any_right),
        "tokens": whole["completion_tokens"].mean(),
        "truncated": 100 * whole["stop_reason"].eq("length").mean(),
        "epistemic words": whole["words"].mean(),
        "per 1,000 tokens": sum(densities) / len(densities),  # of the seeds; each pools its tokens
    }


def test_the_table_of_all_scores_is_what_the_completions_say(study):
    folder, page = study
    plan = json.loads((folder / "results/plans/report/report/plan.json").read_text())
    evaluated = [r for r in plan["rows"] if r["kind"] == "evaluation" and "section" not in r]
    labels = {r["label"].replace(" = ", "\u00a0=\u00a0"): r["experiment"] for r in evaluated}
    found = shown_rows(page)
    assert len(found) == 1 + 3 * len(labels)
    (base,) = completions(folder, [next(r for r in evaluated if r["seed"] is None)])
    for label, _, seed, *cells in found:
        experiment = labels.get(label)
        rows = [r for r in evaluated if r["experiment"] == experiment and r["seed"] is not None]
        rows = [r for r in rows if seed in ("all", str(r["seed"]))]
        expected = numbers(completions(folder, rows) if experiment else [base], base)
        shown = dict(zip(("step", "n", "k", *expected), cells, strict=False))
        assert (shown["n"], shown["k"]) == ("14", "2")
        for name, value in expected.items():
            if name == "difference to base" and not experiment:
                assert shown[name] == "–"
                continue
            first = float(shown[name].replace("\u00a0", " ").split()[0].replace(",", "").replace("−", "-"))
            assert first == pytest.approx(value, rel=6e-3, abs=0.051), (label, seed, name, shown[name])
