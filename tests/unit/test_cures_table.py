"""The leaderboard of cures: numbers by hand, an independent account of the comparisons, marks, and mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfdistill.artifacts.store import Artifact
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import UserError
from selfdistill.seeds import Runs, difference
from selfdistill.views import leaderboard
from selfdistill.views.__main__ import builder
from selfdistill.views.cures import CURES_COLUMNS
from synthetic import CONFIG, Said, build_study, generator, kind_of, seed_of
from test_views import only, rows_of

NAMES = ["tiny_grpo", "tiny_sdpo", "tiny_none", "tiny_rlsd"]
#: Chance of a right completion, tokens, and a text with so many epistemic words.
TRUTH = {"base": (0.5, 20, "wait"), "grpo": (0.9, 40, "wait wait maybe wait"), "solution": (0.02, 10, "done"),
         "none": (0.5, 20, "wait"), "rlsd": (0.9, 30, "maybe wait")}  # fmt: skip
PROBLEMS = 40


def config(**changes) -> dict:
    none = {**CONFIG["experiments"]["tiny_sdpo"], "seeds": [0, 1, 2], "coverage": None}
    experiments = {
        "tiny_grpo": {**none, "recipe": "grpo"},
        "tiny_sdpo": none,
        "tiny_none": {**none, "overrides": {"method": {"context": "none"}}},
        "tiny_rlsd": {**none, "recipe": "grpo", "overrides": {"method": {"name": "rlsd"}}},
    }
    exam = {"source": {"kind": "toy", "families": ["long", "mod"], "count": PROBLEMS // 2}}
    for experiment in experiments.values():
        experiment["variants"] = ["brief"]
    return {
        **CONFIG,
        "variants": {"brief": {"max_tokens": 4}},
        "datasets": {**CONFIG["datasets"], "exam": exam},
        "experiments": experiments,
        "cures": {"tiny": {"experiments": NAMES, "controls": ["tiny_none"]}},
        "report": {"experiments": ["tiny_grpo"], "cures": ["tiny"]},
        **changes,
    }


def arm_of(artifact: Artifact) -> str:
    model = artifact if artifact.stage == "train" else artifact.input("model")
    return "rlsd" if model.frozen_spec["params"].get("method", {}).get("name") == "rlsd" else kind_of(artifact)


def said(artifact: Artifact, step: int, family: str, row: int, sample: int) -> Said:
    chance, tokens, text = TRUTH[arm_of(artifact)]
    if artifact.stage == "evaluate" and artifact.frozen_spec["params"]["sampling"]["max_tokens"] == 4:
        return Said("correct" if row % 4 == 0 else "wrong", text, 4)
    return Said("correct" if generator(artifact, row, sample).random() < chance else "wrong", text, tokens)


def scalars(artifact: Artifact, step: int) -> dict[str, float]:
    arm, seed = arm_of(artifact), seed_of(artifact)
    reward = {"grpo": step / 12, "rlsd": min(step, 6 + seed) / 10, "none": 0.5}.get(arm, 1 / step)
    return {"reward_mean": reward} | ({} if arm == "grpo" else {"teacher_tokens": 10.0 + seed})


@pytest.fixture
def rows(tmp_path, monkeypatch) -> list[dict[str, str]]:
    monkeypatch.chdir(tmp_path)
    plan = build_study("cures", "tiny", said, scalars, config())
    return rows_of(builder("cures")(json.loads(plan.read_text())))


def test_a_row_for_the_base_and_one_for_each_method_in_the_order_of_the_config(rows):
    assert list(rows[0]) == list(CURES_COLUMNS)
    assert [row["experiment"] for row in rows] == ["base", *NAMES]
    assert [row["control"] for row in rows] == ["", "no", "no", "yes", "no"]
    assert [row["label"] for row in rows[2:]] == ["SDPO (c = s)", "SDPO (c = none)", "RLSD (c = s)"]
    assert {row["seeds"] for row in rows[1:]} == {"3"} and {row["n"] for row in rows} == {str(PROBLEMS)}
    assert float(only(rows, experiment="tiny_grpo")["epistemic_density_per_1k_tokens"]) == 100.0


def test_steps_to_90_percent_by_hand(rows):
    """GRPO: final 7.5 / 12, of it 90 % is 6.75 / 12; the mean of steps s - 4 to s is (s - 2) / 12: step 9.

    RLSD, seed 0: the final is 0.54 (steps 3 to 12: 3, 4, 5, 6, 6, ...): 90 % is 0.486, and the means of steps 7 and 8
    are 0.48 and 0.54. Seed 1: 0.6 and 0.54, reached at step 8 (4, 5, 6, 7, 7). Seed 2: 0.65 and 0.585, at step 8.
    """
    found = {row["experiment"]: row["steps_to_90_percent"] for row in rows}
    assert found["tiny_grpo"] == "9"
    assert found["tiny_sdpo"] == found["tiny_none"] == ""  # They do not rise.
    steps = []
    for seed in range(3):
        scores = [min(step, 6 + seed) / 10 for step in range(1, 13)]
        final = sum(scores[-10:]) / 10
        steps.append(next(s for s in range(5, 13) if np.mean(scores[s - 5 : s]) >= 0.9 * final))
    assert float(found["tiny_rlsd"]) == pytest.approx(np.mean(steps), rel=1e-5)


def rewards(monkeypatch, scores) -> list[int] | None:
    table = pd.DataFrame({"reward_mean": scores}, range(1, len(scores) + 1))
    monkeypatch.setattr(leaderboard, "curves", lambda run: table)
    return leaderboard.steps_to_90_percent(["run"])


def test_one_lucky_step_is_not_a_score(monkeypatch):
    """Step 1 is a mean of five steps as every other: the first that can reach anything is step 5."""
    assert rewards(monkeypatch, [0.9, *[0.1] * 9, *[0.9] * 20]) == [15]
    assert rewards(monkeypatch, [*[0.5] * 5, *[0.55] * 25]) == [5]
    assert rewards(monkeypatch, [0.1, 0.9]) is None


def test_noise_without_a_rise_has_no_speed(monkeypatch):
    """Two standard errors: about one flat curve in 44 passes, and nearly all that rise by three deviations."""
    draw = np.random.default_rng(0)
    for rise, low, high in ((0.0, 0, 0.05), (0.3, 0.95, 1)):
        curves = 0.5 + 0.1 * draw.standard_normal((400, 60)) + rise * (np.arange(60) >= 8)
        found = np.mean([rewards(monkeypatch, curve) is not None for curve in curves])
        assert low <= found <= high


def test_intervals_and_spreads_stand_beside_their_values(rows):
    for row in rows:
        for column, value in {"pass_at_k": "pass_at_k", "mean_length": "mean_length",
                              "epistemic_density": "epistemic_density_per_1k_tokens"}.items():  # fmt: skip
            low, high = float(row[f"{column}_low"]), float(row[f"{column}_high"])
            assert low <= float(row[value]) <= high
        if row["experiment"] in ("base", "tiny_grpo"):
            assert float(row["pass_at_k_low"]) < float(row["pass_at_k_high"])
    rlsd, base = only(rows, experiment="tiny_rlsd"), only(rows, experiment="base")
    assert (rlsd["teacher_tokens_min"], rlsd["teacher_tokens_max"]) == ("120", "144")
    assert (rlsd["steps_to_90_percent_min"], rlsd["steps_to_90_percent_max"]) == ("8", "8")
    assert base["steps_to_90_percent_min"] == base["teacher_tokens_max"] == ""


def test_teacher_tokens_are_summed_over_steps_and_averaged_over_seeds(rows):
    found = {row["experiment"]: row["teacher_tokens"] for row in rows}
    assert found == {"base": "", "tiny_grpo": "0", "tiny_sdpo": "132", "tiny_none": "132", "tiny_rlsd": "132"}


def test_accuracy_in_the_variant_stands_beside_the_plain_one(rows):
    assert {(row["variant"], row["variant_avg_at_k"]) for row in rows} == {("brief", "0.25")}
    assert all(float(row["avg_at_k"]) != 0.25 for row in rows)


@pytest.mark.parametrize(("chance", "verdict"), [(0.5, "unclear"), (0.8, "higher"), (0.2, "lower")])
def test_a_null_control_equals_the_base_within_its_interval_or_the_table_says_so(
    tmp_path, monkeypatch, chance, verdict
):
    """Its completions are its own draws: with the base's chance, or with another, as if the engine moved something."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TRUTH, "none", (chance, *TRUTH["base"][1:]))
    plan = build_study("cures", "tiny", said, scalars, config())
    none = only(rows_of(builder("cures")(json.loads(plan.read_text()))), experiment="tiny_none")
    value, low, high = (float(none[name]) for name in ("difference_to_base", "difference_low", "difference_high"))
    assert value != 0 and (low <= 0 <= high) == (verdict == "unclear")
    assert none["versus_base"] == verdict


def test_comparisons_are_paired_and_adjusted_over_the_whole_table(rows):
    """Differences from the completions themselves; Holm's procedure step by step."""
    values = {name: [] for name in ["base", *NAMES]}
    for row in rows:
        for place in row["evaluate_artifact"].split(";"):
            artifact = Artifact(Path("results/artifacts") / place)
            step = artifact.frozen_spec["params"]["steps"][-1]
            outcomes = [
                np.mean([said(artifact, step, "", r, s).outcome == "correct" for s in range(2)])
                for r in range(PROBLEMS)
            ]
            values[row["experiment"]].append(outcomes)
    runs = {n: Runs.of(v, is_trained=n != "base", bounds=(0, 1)) for n, v in values.items()}
    others = {"base": "base", "grpo": "tiny_grpo", "sdpo": "tiny_sdpo"}
    found = {
        (name, label): difference(runs[name], runs[other])
        for name in NAMES
        for label, other in others.items()
        if name != other
    }
    assert len(found) == 10
    ordered = sorted(found, key=lambda key: found[key].family_p_value())
    highest = 0.0
    for place, (name, label) in enumerate(ordered):
        highest = max(highest, min(1.0, found[name, label].family_p_value() * (len(ordered) - place)))
        row = only(rows, experiment=name)
        assert float(row[f"p_{label}"]) == pytest.approx(highest, rel=1e-5)
        value = found[name, label].value
        assert float(row[f"difference_to_{label}"]) == pytest.approx(value, rel=1e-5, abs=1e-9)
        expected = "unclear" if highest > 0.05 else "higher" if value > 0 else "lower"
        assert row[f"versus_{label}"] == expected
    assert only(rows, experiment="tiny_grpo")["versus_base"] == "higher"
    assert only(rows, experiment="tiny_sdpo")["versus_grpo"] == "lower"
    assert only(rows, experiment="tiny_rlsd")["versus_grpo"] == "unclear"
    assert only(rows, experiment="tiny_grpo")["versus_grpo"] == ""


def test_the_report_has_the_leaderboard_with_its_scatter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = builder("report")(json.loads(build_study("report", "report", said, scalars, config()).read_text()))
    section = text[text.index('id="tiny-cures"') :]
    section = section[: section.index("</section>")]
    assert "On exam, 2 of 4 methods end above the base, 1 below it, and 1 are not decided" in section
    assert "have a rank correlation of 1.00" in section
    for label in ("RLSD (c\u00a0=\u00a0s)", "SDPO (c\u00a0=\u00a0none) · control", "base model", "GRPO"):
        assert f">{label}</text>" in section
    named = re.findall(r'<span class="chip( ring)?"[^>]*>([^<]+)<', section)
    assert [label for _, label in named][-2:] == ["SDPO (c\u00a0=\u00a0none) · control", "SDPO (c\u00a0=\u00a0s)"]
    # The figure's marks: hollow for controls alone.
    assert all(bool(ring) == label.endswith("control") for ring, label in named)
    assert "3 training seeds each" in section


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"experiments": ["tiny_grpo", "tiny_gro"]}, r"cures.tiny.experiments.* unknown experiment `tiny_gro`"),
        ({"experiments": ["tiny_grpo"], "controls": ["tiny_none"]}, r"tiny_none must be listed in experiments as well"),
    ],
)
def test_a_mistake_in_the_leaderboard_is_one_line(tmp_path, monkeypatch, entry, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        Workspace(config(cures={"tiny": entry})).view_inputs("cures", "tiny")


def test_an_experiment_on_another_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = CONFIG["models"] | {"other": CONFIG["models"]["tiny"]}
    with pytest.raises(UserError, match=r"cures.other.experiments.*tiny_grpo is an experiment on tiny, not on other"):
        Workspace(config(models=models, cures={"other": {"experiments": ["tiny_grpo"]}})).view_inputs("cures", "other")
