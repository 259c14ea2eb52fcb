"""The tables and the report, against numbers worked out by hand on two problems x two samples x two seeds.

The problems are row 0 (family long) and row 1 (family mod). What every completion is:

             base          grpo seed 0   grpo seed 1   sdpo (both seeds)
    long     right, wrong  right, right  right, wrong  wrong, wrong
    mod      wrong, wrong  wrong, right  wrong, wrong  wrong, wrong
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from markupsafe import escape

from selfdistill.artifacts.store import Artifact
from selfdistill.plan.views import VIEWS
from selfdistill.schema.errors import UserError
from selfdistill.seeds import Part, Uncertain
from selfdistill.views.__main__ import MODULES, builder, main
from selfdistill.views.claims import Check, Comparison, adjusted, summary, together, verdict
from selfdistill.views.coverage import _moves
from selfdistill.views.csv_table import as_csv
from selfdistill.views.figures import spread
from selfdistill.views.measures import DENSITY, LENGTH, measure
from selfdistill.views.part_files import as_latex, as_markdown, part_file, parts
from selfdistill.views.scores import headline
from selfdistill.views.study import read_study
from selfdistill.views.style import looks, wrapped
from selfdistill.views.words import shift
from synthetic import CONFIG, Said, build_study, kind_of, seed_of, vouch_again

RIGHT = {
    ("base", None): {"long": (1, 0), "mod": (0, 0)},
    ("grpo", 0): {"long": (1, 1), "mod": (0, 1)},
    ("grpo", 1): {"long": (1, 0), "mod": (0, 0)},
}
#: (text, tokens): one, three and no epistemic words.
SHORT, LONG, PLAIN = ("wait it is done", 10), ("wait maybe, awaiting done", 30), ("done", 5)
TEXTS = {"base": SHORT, "grpo": LONG, "solution": PLAIN}


def behaviour(artifact: Artifact, step: int, family: str, row: int, sample: int) -> Said:
    kind = kind_of(artifact)
    seed = seed_of(artifact) if artifact.stage == "evaluate" else None
    right = RIGHT.get((kind, seed), {}).get(family, (0, 0))[sample]
    text, tokens = TEXTS.get(kind, SHORT)
    if kind == "grpo" and family == "mod" and sample == 0:
        return Said("unparsed", text, tokens, "length")
    return Said("correct" if right else "wrong", text, tokens)


def scalars(artifact: Artifact, step: int) -> dict[str, float]:
    if kind_of(artifact) in ("guided", "unguided"):
        return {"loss": 1.0 / step}
    return {"reward_mean": step / 100, "completion_tokens_mean": 10.0 * step, "epistemic_count_mean": 1.0}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(view: str, name: str, config: dict = CONFIG, said=behaviour) -> dict:
    return json.loads(build_study(view, name, said, scalars, config).read_text())


def made(view: str, name: str, config: dict = CONFIG, said=behaviour) -> str:
    """The text of a view of a study that is built for it."""
    return builder(view)(plan_of(view, name, config, said))


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def only(rows: list[dict[str, str]], **wanted: object) -> dict[str, str]:
    found = [row for row in rows if all(row[name] == str(value) for name, value in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows for {wanted}"
    return found[0]


# --- results/ood ------------------------------------------------------------------------------------------------------


def test_ood_has_a_row_per_seed_step_and_family_with_the_designed_columns(project):
    rows = rows_of(made("ood", "tiny_grpo"))
    assert list(rows[0]) == [
        "experiment", "seed", "step", "benchmark", "family", "domain", "n", "k", "avg_at_k", "avg_at_k_low",
        "avg_at_k_high", "pass_at_k", "mean_length", "truncation_rate", "epistemic_count",
        "epistemic_density_per_1k_tokens", "difference_to_base", "difference_low", "difference_high",
        "train_artifact", "evaluate_artifact", "epistemics_artifact", "base_artifact",
    ]  # fmt: skip
    cells = [(row["seed"], row["step"], row["family"]) for row in rows]
    seeds = [("base", "0"), ("0", "12"), ("1", "12"), ("all", "0"), ("all", "12")]
    assert cells == [(*seed, family) for seed in seeds for family in ("all", "long", "mod")]


def test_ood_scores_each_seed_and_the_average_of_seeds_per_problem(project):
    rows = rows_of(made("ood", "tiny_grpo"))
    scores = {(r["seed"], r["step"], r["family"]): float(r["avg_at_k"]) for r in rows}
    assert [scores["base", "0", f] for f in ("all", "long", "mod")] == [0.25, 0.5, 0.0]
    assert [scores["0", "12", f] for f in ("all", "long", "mod")] == [0.75, 1.0, 0.5]
    assert [scores["1", "12", f] for f in ("all", "long", "mod")] == [0.25, 0.5, 0.0]
    assert [scores["all", "12", f] for f in ("all", "long", "mod")] == [0.5, 0.75, 0.25]
    both = only(rows, seed="all", step=12, family="all")
    assert (both["n"], both["k"]) == ("2", "2")
    # Pass@2 of the problems: seed 0 has 1 and 1, seed 1 has 1 and 0.
    assert float(both["pass_at_k"]) == 0.75
    # Two problems and two seeds say nothing: the interval is all that a share can be.
    assert (float(both["avg_at_k_low"]), float(both["avg_at_k_high"])) == (0.0, 1.0)


def test_ood_differences_are_paired_over_problems(project):
    rows = rows_of(made("ood", "tiny_grpo"))
    both = only(rows, seed="all", step=12, family="all")
    assert float(both["difference_to_base"]) == 0.25
    # One seed gained 0.5 on both problems and the other nothing: seeds are all that varies, but by too much for two.
    assert [float(both[c]) for c in ("difference_low", "difference_high")] == [-1.0, 1.0]
    # Seed 0: pairing leaves no spread, although the scores differ. At most 1 - 0.025^(1/2) of all problems are others.
    gained = only(rows, seed=0, step=12, family="all")
    share = 1 - 0.025**0.5
    assert float(gained["difference_low"]) == pytest.approx(0.5 - share * 1.5, abs=1e-5)
    assert float(gained["difference_high"]) == pytest.approx(0.5 + share * 0.5, abs=1e-5)
    assert float(only(rows, seed=1, step=12, family="all")["difference_to_base"]) == 0.0
    assert only(rows, seed="base", family="all")["difference_to_base"] == ""


def test_ood_counts_length_truncation_and_words(project):
    rows = rows_of(made("ood", "tiny_grpo"))
    base, trained = only(rows, seed="base", family="all"), only(rows, seed=0, family="all")
    assert [float(base[c]) for c in ("mean_length", "truncation_rate", "epistemic_count")] == [10.0, 0.0, 1.0]
    assert float(base["epistemic_density_per_1k_tokens"]) == 100.0
    # "wait maybe, awaiting": three by the paper's substring rule.
    assert [float(trained[c]) for c in ("mean_length", "truncation_rate", "epistemic_count")] == [30.0, 0.25, 3.0]
    assert float(trained["epistemic_density_per_1k_tokens"]) == 100.0


def test_step_zero_of_all_seeds_is_the_base(project):
    rows = rows_of(made("ood", "tiny_grpo"))
    base, start = only(rows, seed="base", family="long"), only(rows, seed="all", step=0, family="long")
    assert {**base, "seed": "all"} == start
    assert base["train_artifact"].startswith("pretrain/")


def test_rows_name_the_artifacts_behind_them(project):
    rows = rows_of(made("ood", "tiny_grpo"))
    for name in ("train_artifact", "evaluate_artifact", "epistemics_artifact"):
        of_seeds = [only(rows, seed=seed, family="all")[name] for seed in (0, 1)]
        assert only(rows, seed="all", step=12, family="all")[name] == ";".join(of_seeds)
        assert all(Artifact.open(Path("results/artifacts") / found).is_sealed for found in of_seeds)
    base = only(rows, seed="base", family="all")
    named = f"{base['evaluate_artifact']};{base['epistemics_artifact']}"
    assert {row["base_artifact"] for row in rows if row["step"] != "0"} == {named} and not base["base_artifact"]


def test_every_evaluated_checkpoint_has_its_rows(project):
    config = {**CONFIG, "experiments": {"tiny_grpo": {**CONFIG["experiments"]["tiny_grpo"], "evaluate": "all"}}}
    rows = rows_of(made("ood", "tiny_grpo", config))
    assert [r["step"] for r in rows if r["seed"] == "all" and r["family"] == "all"] == ["0", "6", "12"]


# --- the other tables -------------------------------------------------------------------------------------------------


def test_epistemic_counts_words_by_both_rules_and_their_change(project):
    rows = rows_of(made("epistemic", "tiny_grpo"))
    loose = only(rows, seed="all", step=12, mode="substring", word="wait")
    whole = only(rows, seed="all", step=12, mode="word", word="wait")
    # "wait maybe, awaiting" against "wait it is": wait 2 against 1 anywhere, 1 against 1 as a whole word.
    assert [float(loose[c]) for c in ("count", "change_of_count", "change_of_count_low")] == [2.0, 1.0, 1.0]
    assert [float(whole[c]) for c in ("count", "change_of_count")] == [1.0, 0.0]
    # 2 per 30 tokens against 1 per 10.
    assert float(loose["density_per_1k_tokens"]) == pytest.approx(66.6667)
    assert float(loose["change_of_density"]) == pytest.approx(66.6667 - 100)
    assert float(only(rows, seed="base", mode="substring", word="all")["count"]) == 1.0
    assert only(rows, seed="base", mode="substring", word="all")["change_of_count"] == ""


def test_the_control_compares_lexicon_words_with_all_others(project):
    rows = rows_of(made("epistemic", "tiny_grpo"))
    control = only(rows, seed="all", step=12, mode="word", word="all")
    # Lexicon: wait 0, maybe +1. Others: it -1, is -1, done 0, awaiting +1.
    assert float(control["mean_absolute_change"]) == 0.5
    assert float(control["mean_absolute_change_other_words"]) == 0.75
    assert control["other_words"] == "4"
    assert only(rows, seed="all", step=12, mode="word", word="wait")["other_words"] == ""


def test_words_are_runs_of_letters():
    assert shift({"don't": 1.0}, {}, ["wait"]) == (0.0, 1.0, 1)
    from selfdistill.views.words import _WORD

    assert _WORD.findall("maybe r3, don't \\boxed{ 5 } größer") == ["maybe", "don't", "boxed", "größer"]


def test_curves_hold_every_scalar_and_the_last_writing_of_a_step(project):
    plan = plan_of("curves", "tiny_grpo")
    metrics = Path("results/artifacts") / plan["rows"][0]["train_artifact"] / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write(json.dumps({"step": 12, "reward_mean": 0.5, "extra": 2, "note": "text", "flag": True}) + "\n")
    vouch_again(Artifact(metrics.parent))
    rows = rows_of(builder("curves")(plan))
    assert list(rows[0]) == ["experiment", "seed", "step", "completion_tokens_mean", "epistemic_count_mean", "extra",
                             "reward_mean", "train_artifact"]  # fmt: skip
    assert len(rows) == 24
    assert only(rows, seed=0, step=3) == {
        "experiment": "tiny_grpo", "seed": "0", "step": "3", "completion_tokens_mean": "30",
        "epistemic_count_mean": "1", "extra": "", "reward_mean": "0.03",
        "train_artifact": plan["rows"][0]["train_artifact"],
    }  # fmt: skip
    assert only(rows, seed=0, step=12)["reward_mean"] == "0.5"


def test_richness_puts_the_papers_values_beside_ours(project):
    rows = rows_of(made("richness", "tiny"))
    assert [row["context"] for row in rows] == ["none", "solution", "solution_no_think", "regenerated"]
    none, shown = rows[0], rows[1]
    assert [float(none[c]) for c in ("mean_length", "mean_length_low", "epistemic_density_per_1k_tokens")] == [
        10.0, 10.0, 100.0,
    ]  # fmt: skip
    assert [float(shown[c]) for c in ("mean_length", "epistemic_count")] == [5.0, 0.0]
    assert [float(none[c]) for c in ("paper_avg_at_k", "paper_mean_length", "paper_epistemic_count")] == [
        0.3, 13054, 182.5,
    ]  # fmt: skip
    assert float(none["paper_epistemic_density_per_1k_tokens"]) == pytest.approx(13.98, abs=0.005)


def test_sft_orders_the_arms_and_shows_the_base_once(project):
    rows = rows_of(made("sft", "tiny"))
    assert [(r["arm"], r["seed"]) for r in rows] == [
        ("base", "base"), ("unguided", "0"), ("unguided", "1"), ("unguided", "all"),
        ("guided", "0"), ("guided", "1"), ("guided", "all"),
    ]  # fmt: skip
    assert float(rows[0]["avg_at_k"]) == 0.25
    assert float(rows[-1]["difference_to_base"]) == -0.25
    assert {row["paper_avg_at_k"] for row in rows} == {""}


def test_papers_values_go_beside_the_papers_model_only():
    from selfdistill.views.paper_tables import is_papers_model

    assert is_papers_model("model/deepseek-r1-distill-qwen-7b-0123456789ab")
    assert not is_papers_model("pretrain/toy-0123456789ab")


def test_coverage_shows_final_training_score_by_number_of_problems(project):
    rows = rows_of(made("coverage", "tiny"))
    assert [(r["experiment"], r["distinct"], r["seed"]) for r in rows][:4] == [
        ("base", "", "base"), ("tiny_grpo_d2", "2", "0"), ("tiny_grpo_d2", "2", "all"), ("tiny_sdpo_d2", "2", "0"),
    ]  # fmt: skip
    whole = only(rows, experiment="tiny_grpo", seed="all")
    assert whole["distinct"] == "all"
    # Steps 3 to 12 of step / 100 and of 10 x step.
    assert float(whole["training_score"]) == pytest.approx(0.075)
    assert float(whole["training_length"]) == pytest.approx(75.0)
    assert float(whole["difference_to_base"]) == 0.25
    assert only(rows, experiment="base")["training_score"] == ""


def test_tables_are_byte_equal_when_made_twice(project):
    plan = plan_of("ood", "tiny_grpo")
    assert builder("ood")(plan) == builder("ood")(plan)


def test_cells_are_short_empty_or_whole():
    text = as_csv(
        [{"a": 0.1 + 0.2 - 0.3, "b": None, "c": 3}, {"a": 1 / 3, "b": float("nan"), "c": "x"}], ("a", "b", "c")
    )
    assert text == "a,b,c\n0,,3\n0.333333,,x\n"
    with pytest.raises(ValueError, match="not columns of this table: d"):
        as_csv([{"d": 1}], ("a",))


# --- measures ---------------------------------------------------------------------------------------------------------


def test_density_pools_tokens_and_its_interval_is_that_of_the_ratio(project):
    """Against a bootstrap of the ratio itself."""

    def said(artifact, step, family, row, sample):
        rng = np.random.default_rng([row, sample])
        words = int(rng.integers(0, 4))
        return Said("wrong", "wait " * words, int(rng.integers(40, 60)) + 3 * words)

    exam = {"source": {"kind": "toy", "families": ["long"], "count": 60}}
    config = {**CONFIG, "datasets": {**CONFIG["datasets"], "exam": exam}}
    plan = plan_of("ood", "tiny_grpo", config, said)
    base = next(row for row in plan["rows"] if row["seed"] is None)
    measured = measure(base["evaluate_artifact"], base["epistemics_artifact"])[0]
    counts = pq.read_table(
        Path("results/artifacts") / base["epistemics_artifact"] / "payload/counts.parquet"
    ).to_pandas()
    by_problem = counts.groupby("row_id")[["substring_total", "completion_tokens"]].sum().to_numpy()
    draws = np.random.default_rng(1).integers(60, size=(4000, 60))
    sums = by_problem[draws].sum(axis=1)
    low, high = np.quantile(1000 * sums[:, 0] / sums[:, 1], [0.025, 0.975])
    found = measured.estimate(DENSITY)
    assert found.value == pytest.approx(1000 * by_problem[:, 0].sum() / by_problem[:, 1].sum())
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)


def test_measurements_of_other_problems_are_not_compared(project):
    plan = plan_of("ood", "tiny_grpo")
    base = next(row for row in plan["rows"] if row["seed"] is None)
    measured = measure(base["evaluate_artifact"], base["epistemics_artifact"])[0]
    other = type(measured)(tuple(f.set_index(f.index + 100) for f in measured.frames), measured.k, is_trained=False)
    with pytest.raises(UserError, match="share no problem"):
        measured.difference(other, LENGTH)


def test_counts_of_other_completions_are_an_error(project):
    plan = plan_of("ood", "tiny_grpo")
    artifacts = [row["epistemics_artifact"] for row in plan["rows"]]
    path = Path("results/artifacts") / artifacts[0] / "payload/counts.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    vouch_again(Artifact(path.parents[1]))
    with pytest.raises(UserError, match="does not count the completions"):
        builder("ood")(plan)


# --- the command ------------------------------------------------------------------------------------------------------


def view_arguments(plan: Path, output: str = "results/ood/x.csv", digest: str | None = None, view="ood") -> list[str]:
    digest = digest or hashlib.sha256(plan.read_bytes()).hexdigest()
    return [view, str(plan), output, "--digest", digest, "--log", "logs/x.log"]


def test_every_view_that_can_be_planned_can_be_made():
    assert set(MODULES) == set(VIEWS)
    assert all(callable(builder(view)) for view in VIEWS)


def test_a_view_writes_its_file_and_its_log(project, capsys):
    plan = build_study("ood", "tiny_grpo", behaviour, scalars)
    main(view_arguments(plan))
    assert Path("results/ood/x.csv").read_text() == builder("ood")(json.loads(plan.read_text()))
    assert "wrote results/ood/x.csv" in Path("logs/x.log").read_text()


@pytest.mark.parametrize("fault", ["digest", "view", "unfinished", "no column", "no file"])
def test_a_mistake_is_one_line_and_exit_code_two(project, capsys, fault):
    plan = build_study("ood", "tiny_grpo", behaviour, scalars)
    arguments = view_arguments(plan)
    folder = Path("results/artifacts") / json.loads(plan.read_text())["rows"][1]["evaluate_artifact"]
    if fault == "digest":
        arguments[4] = "0" * 64
    elif fault == "view":
        arguments[0] = "curves"
    elif fault == "unfinished":
        (folder / "manifest.json").unlink()
        (folder / ".sealed.json").unlink()
    elif fault == "no file":
        (folder / "payload/rollouts.parquet").unlink()
    elif fault == "no column":
        path = folder / "payload/rollouts.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["outcome"]), path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "reading" not in line]
    assert len(lines) == 1
    assert not Path("results/ood/x.csv").exists()


def test_a_table_is_made_without_loading_torch_or_what_only_figures_need(project):
    plan = build_study("ood", "tiny_grpo", behaviour, scalars)
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['view', *{view_arguments(plan)!r}]\n"
        "runpy.run_module('selfdistill.views', run_name='__main__')\n"
        "print({'torch', 'matplotlib', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- settings and data sets side by side ----------------------------------------------------------------------------


def swept() -> dict:
    """GRPO with two more values of a setting, evaluated at every checkpoint."""
    entry = CONFIG["experiments"]["tiny_grpo"] | {"sweep": {"group_size": [4, 2]}, "evaluate": "all", "coverage": None}
    return {**CONFIG, "experiments": {**CONFIG["experiments"], "tiny_grpo": entry}}


def better_early(artifact, step, family, row, sample):
    """Right at step 6 and wrong at step 12."""
    return Said("correct" if step == 6 else "wrong", *SHORT)


def test_tuning_shows_the_last_and_the_best_checkpoint_of_each_setting(project):
    rows = rows_of(made("tuning", "tiny_grpo", swept(), better_early))
    assert [(r["setting"], r["chosen"], r["step"], r["avg_at_k"]) for r in rows] == [
        (setting, chosen, step, score)
        for setting in ("as in the recipe", "group_size = 4", "group_size = 2")
        for chosen, step, score in (("last", "12", "0"), ("best", "6", "1"))
    ]


def test_the_report_shows_a_sweep_under_the_look_of_its_experiment(project):
    report = {"experiments": ["tiny_grpo"], "tuning": ["tiny_grpo"]}
    text = made("report", "report", {**swept(), "report": report}, better_early)
    section = text[text.index('id="tiny-tuning"') :].partition("</section>")[0]
    assert "group_size = 4" in section and "filled, the last checkpoint; hollow, the best" in section


def test_data_sets_of_different_breadth_stand_side_by_side(project):
    narrow = {"source": {"kind": "toy", "families": ["id"], "count": 1}}
    drill = CONFIG["datasets"]["drill"]
    names = ("tiny_grpo", "tiny_sdpo")
    entries = {name: CONFIG["experiments"][name] | {"coverage": None} for name in names}
    entries |= {f"narrow_{name}": entries[name] | {"dataset": "narrow"} for name in names}
    config = {
        **CONFIG,
        "datasets": {**CONFIG["datasets"], "drill": drill, "narrow": narrow},
        "benchmarks": {"exam": {**CONFIG["benchmarks"]["exam"], "domain": "in"}},
        "experiments": entries,
        "report": {"experiments": list(entries)},
    }
    text = made("report", "report", config)
    section = text[text.index('id="breadth"') :].partition("</section>")[0]
    assert len(re.findall("<tr>", section)) == 1 + 4
    assert "accuracy on exam changes under" in section
    assert 'id="breadth"' not in made("report", "report", {**config, "report": {"experiments": list(names)}})


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[str, Path]:
    """The report of the whole small study, and its project."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return made("report", "report"), folder


def test_the_report_is_one_file_that_loads_nothing(page):
    text, _ = page
    assert "<script" not in text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {a.split("/")[0] for a in addresses if not a.startswith(("#", "data:"))} == {"artifacts"}
    assert not re.search(r"@import|url\(\s*['\"]?(?!#f)", text)


def test_every_link_of_the_report_leads_somewhere(page):
    text, folder = page
    targets = set(re.findall(r'href="(artifacts/[^"]*)"', text))
    assert targets
    assert all((folder / "results" / target).is_file() for target in targets)
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(identifiers)


def test_the_report_names_every_artifact_behind_it(page):
    text, folder = page
    sealed = [p.parent.name[-12:] for p in folder.glob("results/artifacts/*/*/manifest.json")]
    assert all(key in text for key in sealed)
    assert f"{len(sealed)} artifacts, made by commit cccccccccc" in text


@pytest.mark.parametrize(
    ("grpo", "solution", "opening", "detail"),
    [
        (
            (1, 1),
            (0, 0),
            "The paper&#39;s effect shows: ",
            "GRPO gains 50.0 points and SDPO (c\u00a0=\u00a0s) loses 50.0",
        ),
        ((1, 1), (1, 1), "The paper&#39;s effect shows only in part: ", "GRPO gains 50.0 points and"),
        ((0, 0), (1, 1), "The paper&#39;s effect does not show: ", "GRPO loses 50.0 points and"),
        ((1, 0), (0, 1), "These data do not settle", "GRPO does not clearly change (+0.00 points [−"),
    ],
)
def test_the_finding_follows_the_numbers(project, grpo, solution, opening, detail):
    def said(artifact, step, family, row, sample):
        right = {"grpo": grpo, "solution": solution}.get(kind_of(artifact), (1, 0))[sample]
        return Said("correct" if right else "wrong", *TEXTS.get(kind_of(artifact), SHORT))

    finding = headline(read_study(plan_of("report", "report", three_seeds(), said))[0])
    assert escape(finding).startswith(opening)
    assert detail in finding
    assert "do not clearly move from the base's: 100 under GRPO and fall to 0.00 under SDPO" in finding


@pytest.mark.parametrize(
    ("chance", "of_all", "of_long"),
    [
        ({}, None, None),
        ({"all": 0.25}, 0.25, 0.25),
        ({"long": 0.125, "mod": 0.25}, 0.1875, 0.125),
        ({"long": 0.125}, None, 0.125),
        ({"long": 0.5, "all": 0.25}, 0.25, 0.5),
    ],
)
def test_chance_of_all_families_is_weighted_by_their_problems(project, chance, of_all, of_long):
    exam = {**CONFIG["benchmarks"]["exam"], "chance": chance}
    study = read_study(plan_of("report", "report", {**CONFIG, "benchmarks": {**CONFIG["benchmarks"], "exam": exam}}))[0]
    evaluation = study.on("exam")["tiny_grpo"]
    assert (evaluation.chance(), evaluation.chance("long")) == (of_all, of_long)
    assert evaluation.bounds() == ((1.0,) if of_all is None else (of_all, 1.0))


def test_a_sentence_about_equal_numbers_says_that_they_stay():
    assert _moves("84 %", "84 %") == "stays at 84 %"
    assert _moves("18 %", "24 %") == "goes from 18 % to 24 %"


def three_seeds() -> dict:
    """GRPO and SDPO with three seeds on 24 problems."""
    exam = {"source": {"kind": "toy", "families": ["long", "mod"], "count": 24}}
    names = ("tiny_grpo", "tiny_sdpo")
    experiments = {name: {**CONFIG["experiments"][name], "seeds": [0, 1, 2], "coverage": None} for name in names}
    return {
        **CONFIG,
        "datasets": {**CONFIG["datasets"], "exam": exam},
        "experiments": experiments,
        "report": {"experiments": list(names)},
    }


def test_the_report_opens_with_its_finding(page):
    text, _ = page
    assert (
        'class="finding">No verdict on the paper&#39;s effect, which needs GRPO and SDPO with 3 training seeds' in text
    )
    assert text.index('finding">') < text.index("<svg") < text.index("<section")


def test_the_report_counts_what_was_lost(page):
    text, _ = page
    losses = text[text.index('id="losses"') :]
    for loss in ("dropped: duplicate", "prompts_without_context", "truncated_contexts", "problems without a pair"):
        assert loss in losses


def test_the_report_is_byte_equal_when_another_process_makes_it(page):
    text, folder = page
    plan = Path("results/plans/report/report/plan.json")
    command = [sys.executable, "-m", "selfdistill.views", "report", str(plan), "again.html"]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (folder / "again.html").read_text() == text


@pytest.fixture(scope="module")
def report_plan(page) -> Path:
    _, folder = page
    return folder / "results/plans/report/report/plan.json"


@pytest.mark.parametrize("name", ["tiny-main-1", "tiny-curves-1", "tiny-coverage-1"])
def test_a_figure_of_the_report_is_a_file_of_a_papers_width(page, report_plan, name, monkeypatch):
    monkeypatch.chdir(page[1])
    for ending, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        output = Path(f"results/figures/report/{name}.{ending}")
        output.parent.mkdir(parents=True, exist_ok=True)
        main(view_arguments(report_plan, str(output), view="figures"))
        first = output.read_bytes()
        assert first.startswith(start)
        main(view_arguments(report_plan, str(output), view="figures"))
        assert output.read_bytes() == first
    width = re.search(r'<svg [^>]*width="([0-9.]+)pt"', output.with_suffix(".svg").read_text())
    assert float(width[1]) == pytest.approx(5.5 * 72)


def test_a_table_of_the_report_is_markdown_and_latex_with_the_reports_numbers(page, report_plan, monkeypatch):
    monkeypatch.chdir(page[1])
    found = parts(json.loads(report_plan.read_text()))
    table = found["tiny-scores-1"]
    markdown, latex = as_markdown(table).splitlines(), as_latex(table)
    header = [part.strip() for part in markdown[0].strip("|").split("|")]
    assert header == [name for name in table.header if name != "artifacts"]
    assert len(markdown) == len(table.rows) + 2
    for row, line in zip(table.rows, markdown[2:], strict=True):
        assert all(cell.text.replace("|", "\\|") in line for cell in row)
    assert latex.count(r" \\") == len(table.rows) + 1 and r"\toprule" in latex
    assert "\u00a0" not in latex and "−" not in latex


def test_an_unknown_part_is_answered_with_those_that_there_are(page, report_plan, monkeypatch):
    monkeypatch.chdir(page[1])
    plan = json.loads(report_plan.read_text())
    with pytest.raises(
        UserError, match="unknown part of the report `report` `tiny-man-1`. Did you mean `tiny-main-1`?"
    ):
        part_file("figures", plan, Path("results/figures/report/tiny-man-1.svg"))
    with pytest.raises(UserError, match=r"figures are written as \.svg or \.pdf"):
        part_file("figures", plan, Path("results/figures/report/tiny-main-1.md"))


def test_links_of_a_named_report_lead_out_of_its_folder(project):
    plan = plan_of("report", "mine", {**CONFIG, "reports": {"mine": {"experiments": ["tiny_grpo"]}}})
    links = set(re.findall(r'href="([^"#][^"]*manifest.json)"', builder("report")(plan)))
    assert links and all((Path("results/reports") / link).resolve().is_file() for link in links)


def test_assumptions_have_a_column_for_each_base_that_was_made(project):
    tiny = CONFIG["models"]["tiny"]
    pretrain = {
        "tiny": {},
        "switched": {"mixture": {"give_up": 0.3, "thinking_off": {"share": 0.25, "direct": 0.65}}},
        "chained": {"chains": {"doubt": 0.55}},
    }
    models = {name: {**tiny, "pretrain": {**tiny["pretrain"], **changes}} for name, changes in pretrain.items()}
    arm = {**CONFIG["experiments"]["tiny_grpo"], "coverage": None}
    config = {
        **CONFIG,
        "models": models,
        "experiments": {name: {**arm, "model": name} for name in models},
        "richness": {},
        "report": {"experiments": list(models)},
    }
    text = made("report", "report", config)
    section = text[text.index('id="assumptions"') :]
    rows = dict(re.findall(r"<td[^>]*>([^<]+)</td>\s*((?:<td[^>]*>[^<]*</td>\s*){3})</tr>", section))
    shares = {name: re.findall(r">([^<>]+)</td>", cells) for name, cells in rows.items()}
    assert [re.findall(r">(tiny|switched|chained)</th>", section)] == [["tiny", "switched", "chained"]]
    assert shares["Chance of a guess after a failed check"] == ["12.0\u00a0%", "30.0\u00a0%", "–"]
    assert shares["Share of texts with thinking switched off"] == ["–", "25.0\u00a0%", "–"]
    assert shares["Rate of doubt in plain problems"] == ["–", "–", "55.0\u00a0%"]


def test_a_given_model_gets_no_text_about_a_made_world(project, page):
    assert 'id="assumptions"' in page[0]
    Path("config").mkdir()
    Path("config/assets.lock.yaml").write_text(
        f"given: {{kind: model, source: hub, repo: some/given, revision: {'a' * 40}, licence: MIT}}\n"
    )
    model = {name: value for name, value in CONFIG["models"]["tiny"].items() if name != "pretrain"}
    config = {**CONFIG, "models": {"tiny": {**model, "asset": "given"}}}
    text = made("report", "report", config)
    assert 'id="assumptions"' not in text
    assert "toy" not in text.lower()
    assert "small world" not in text


def test_a_report_of_one_method_says_what_is_missing(project):
    config = {**CONFIG, "report": {"experiments": ["tiny_sdpo"]}}
    text = made("report", "report", config)
    assert "No verdict on the paper&#39;s effect, since there is no GRPO run to compare with: on exam" in text
    assert 'id="tiny-coverage"' not in text


def test_several_benchmarks_checkpoints_and_twins_share_one_report(project):
    grpo, sdpo = CONFIG["experiments"]["tiny_grpo"], CONFIG["experiments"]["tiny_sdpo"]
    more = {"benchmarks": ["exam", "second"], "evaluate": "all", "coverage": None}
    twin = {**sdpo, **more, "overrides": {"optimiser": {"learning_rate": 1e-4}}}
    config = {
        **CONFIG,
        "benchmarks": {**CONFIG["benchmarks"], "second": {"dataset": "drill", "domain": "in", "samples": 2}},
        "experiments": {"one": {**grpo, **more}, "two": {**sdpo, **more}, "three": twin},
        "report": {"experiments": ["one", "two", "three"]},
    }
    text = made("report", "report", config)
    assert "No verdict on the paper&#39;s effect" in text and "here there are 2: on exam" in text
    assert 'id="tiny-checkpoints"' in text
    assert "SDPO (c\u00a0=\u00a0s), two" in text and "SDPO (c\u00a0=\u00a0s), three" in text


# --- claims -----------------------------------------------------------------------------------------------------------


def uncertain(value, deviation, seeds=3):
    over = "seeds and problems" if seeds > 1 else "problems, one seed"
    return Uncertain(value, (Part(deviation**2, 50),), over, problems=51)


def test_a_comparison_is_decided_by_its_p_value_and_needs_more_than_one_seed():
    cases = [uncertain(0.2, 0.05), uncertain(-0.2, 0.05), uncertain(0.2, 0.15), uncertain(0.2, 0.05, seeds=1)]
    assert [verdict(case) for case in cases] == ["yes", "no", "unclear", "one seed"]


def test_near_is_sure_inside_sure_outside_or_unclear():
    cases = [uncertain(0.0, 0.01), uncertain(0.2, 0.01), uncertain(0.0, 0.05), uncertain(0.06, 0.05)]
    assert [Comparison.near(case, 0.05).verdict for case in cases] == ["yes", "no", "unclear", "unclear"]


def test_the_more_comparisons_a_table_has_the_surer_each_must_be():
    """p = 0.02 is decided alone and not among three (0.06); a comparison with one seed is not in the family."""

    def check(*p_values, has_one_seed=False):
        comparisons = tuple(Comparison(True, p, has_one_seed, p) for p in p_values)
        return Check("", "", "", "", comparisons, "", ())

    assert [c.verdict for c in adjusted([check(0.02)])] == ["yes"]
    found = adjusted([check(0.02), check(0.5, has_one_seed=True), check(0.04, 0.03)])
    assert [c.verdict for c in found] == ["unclear", "one seed", "unclear"]
    assert [c.p_value for check in found for c in check.comparisons] == pytest.approx([0.06, 0.5, 0.06, 0.06])


def test_an_order_fails_with_one_pair_and_is_unclear_with_one_unclear_pair():
    assert together(["yes", "yes"]) == "yes"
    assert together(["yes", "unclear"]) == "unclear"
    assert together(["unclear", "no"]) == "no"
    assert together(["yes", "one seed"]) == "one seed"


def test_claims_of_the_small_study_come_out_as_built(page):
    text, _ = page
    checks = text[text.index('id="tiny-checks"') : text.index('id="tiny-completions"')]
    assert "accuracy: GRPO &gt; base &gt; SDPO" in checks
    badges = re.findall(r'class="badge ([\w-]+)"', checks)
    assert summary([type("C", (), {"verdict": b.replace("-", " ")})() for b in badges]) in checks
    # All training runs have the same scores here, so no claim about them can hold.
    assert badges[-3:] == ["one-seed", "unclear", "one-seed"]
    # SFT unguided gets nothing right, the base 1 of 2 and 0 of 2: between 50 and 0 points below.
    near = checks[: checks.index("within 5 points of base")]
    assert re.findall(r'class="badge (\w+)"', near)[-1] == "unclear"


def test_every_method_keeps_its_colour_and_twins_get_their_names():
    about = [
        {"experiment": "a", "method": "grpo", "context": None, "label": "GRPO"},
        {"experiment": "b", "method": "sdpo", "context": "solution", "label": "SDPO (c = s)"},
        {"experiment": "c", "method": "sdpo", "context": "solution", "label": "SDPO (c = s)"},
        {"experiment": "d", "method": "mine.newest", "context": "x", "label": "Newest (c = x)"},
    ]
    found = looks(about)
    assert found["a"].label == "GRPO"
    assert found["b"].light == found["c"].light != found["a"].light
    assert found["b"].line != found["c"].line
    assert found["c"].label.endswith(", c")
    assert found["d"].label == "Newest (c\u00a0=\u00a0x)"


def test_long_labels_are_broken_where_names_have_joints():
    assert wrapped("SDPO (c\u00a0=\u00a0s)", 24) == "SDPO (c\u00a0=\u00a0s)"
    assert wrapped("GRPO, grpo_with_a_long_name_0", 12) == "GRPO, grpo_\nwith_a_long_\nname_0"
    assert wrapped("x" * 25, 10) == "\n".join(["x" * 10, "x" * 10, "x" * 5])
    assert wrapped("", 10) == ""


def test_one_long_interval_does_not_squeeze_the_others():
    intervals = [(0.9, 1.1), (1.9, 2.1), (-50.0, 60.0)]
    low, high = spread([1.0, 2.0, 5.0], intervals)
    assert -5 < low < 0.9 and 5 < high < 11
    assert spread([1.0, 1.1], [(0.0, 2.0), (0.1, 2.1)]) == pytest.approx((-0.294, 2.394))  # Usual ones are whole.
    assert spread([1.0], [(float("nan"), float("nan"))]) == (0.0, 2.0)
