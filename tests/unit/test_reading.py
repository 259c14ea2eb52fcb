"""Completions to read and experiments compared, on the small study of test_views."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.epistemic import PAPER_WORDS, count, mark
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import UserError
from selfdistill.views import comparison
from selfdistill.views.__main__ import builder
from synthetic import CONFIG, Said, build_study, kind_of, seed_of

WORDS = ("wait", "maybe")
TEXT = "<think> Wait, maybe 3 </think> \\boxed{3} & <b>"


def said(artifact, step, family, row, sample):
    """The base is right on even problems, GRPO on all, SDPO on none and without a word of doubt."""
    kind = kind_of(artifact)
    is_right = {"base": row % 2 == 0, "grpo": True}.get(kind, False)
    seed = seed_of(artifact) if artifact.stage == "evaluate" else None
    text = "so 3" if kind == "solution" else f"{TEXT} {kind} {seed} {sample}"
    return Said("correct" if is_right else "wrong", text, 40 if kind == "grpo" else 10)


def scalars(artifact, step):
    return {"reward_mean": 0.5, "completion_tokens_mean": 10.0, "epistemic_count_mean": 1.0}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """GRPO and SDPO with two seeds on 24 problems, finished."""
    folder = tmp_path_factory.mktemp("reading")
    exam = {"source": {"kind": "toy", "families": ["long", "mod"], "count": 12}}
    names = ("tiny_grpo", "tiny_sdpo")
    config = {
        **CONFIG,
        "datasets": {**CONFIG["datasets"], "exam": exam},
        "experiments": {name: {**CONFIG["experiments"][name], "coverage": None} for name in names},
        "report": {"experiments": list(names)},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("config").mkdir()
        Path("config/config.yaml").write_text(yaml.safe_dump(config))
        build_study("report", "report", said, scalars, config)
    return folder


@pytest.fixture
def run(study, monkeypatch):
    monkeypatch.chdir(study)

    def invoke(*arguments, expect=0):
        result = CliRunner().invoke(app, list(arguments))
        if isinstance(result.exception, UserError):
            return str(result.exception)
        assert result.exit_code == expect, result.output
        return result.output

    return invoke


def test_marked_pieces_are_the_text_and_hold_what_the_papers_rule_counts():
    for text in (TEXT, "", "awaiting", "waitwait maybe", "no word"):
        pieces = mark(text, PAPER_WORDS)
        assert "".join(piece for piece, _ in pieces) == text
        assert sum(is_word for _, is_word in pieces) == sum(count(text, PAPER_WORDS, "substring").values())
        assert all(piece for piece, _ in pieces)


def test_of_overlapping_words_the_longest_is_marked():
    assert mark("not sure", ["not", "not sure"]) == [("not sure", True)]


def test_show_prints_question_gold_and_both_completions(run):
    output = run("show", "tiny_sdpo", "--problem", "3")
    assert "exam, problem 3" in output and "gold answer" in output
    assert "base model: wrong (10 tokens, 2 epistemic words)" in output
    assert re.search(r"SDPO .*: wrong \(10 tokens, 0 epistemic words\)", output)
    assert "so 3" in output and "base None 0" in output


def test_show_chooses_by_outcome(run):
    def problems(*options):
        return [int(n) for n in re.findall(r"problem (\d+)", run("show", "tiny_sdpo", "--limit", "99", *options))]

    assert problems() == list(range(24))
    assert problems("--which", "wrong") == list(range(24))
    assert problems("--which", "changed") == list(range(0, 24, 2))
    assert "No problem of exam is right under tiny_sdpo" in run("show", "tiny_sdpo", "--which", "right")
    assert len(problems("--diff", "tiny_grpo", "--which", "changed")) == 24


def test_show_prints_markdown(run):
    output = run("show", "tiny_grpo", "--problem", "0", "--seed", "1", "--sample", "1", "--markdown")
    assert "### GRPO: right, 40 tokens, 2 epistemic words\n\n<think> **Wait**, **maybe** 3" in output
    assert "grpo 1 1" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny_grop",), "Did you mean `tiny_grpo`?"),
        (("tiny_grpo", "--benchmark", "exma"), "Did you mean `exam`?"),
        (("tiny_grpo", "--problem", "24"), "no problem 24"),
        (("tiny_grpo", "--seed", "7"), "has no seed 7; it has 0, 1"),
        (("tiny_grpo", "--sample", "5"), "no completion 5"),
    ],
)
def test_what_is_not_there_is_one_clear_line(run, arguments, message):
    assert message in run("show", *arguments)


def test_compare_says_what_differs_and_by_how_much(run):
    found = json.loads(run("compare", "tiny_grpo", "tiny_sdpo", "--json"))
    assert {"field": "params.method.name", "a": "grpo", "b": "sdpo"} in found["settings"]
    score = next(row for row in found["scores"] if row["metric"] == "score" and row["family"] == "all")
    assert (score["a"], score["b"], score["difference"]) == (1.0, 0.0, -1.0)
    assert score["over"] == "seeds and problems" and score["verdict"] == "lower"
    assert score["p_value"] == pytest.approx(2.0**-23)
    word = next(row for row in found["words"] if row["word"] == "wait")
    assert (word["a"], word["b"], word["difference"]) == (1.0, 0.0, -1.0)
    assert found["flips"] == [{"benchmark": "exam", "only_a": list(range(24)), "only_b": []}]
    tokens = next(row for row in found["cost"] if row["what"] == "tokens sampled in training")
    spec = CONFIG["recipes"][CONFIG["experiments"]["tiny_grpo"]["recipe"]]
    # Eight completions a prompt, the default.
    assert tokens["a"] == 10.0 * spec["steps"] * spec["prompts_per_step"] * 8


def test_demonstrations_that_were_written_anew_count_among_the_tokens_sampled(monkeypatch):
    lines = pd.DataFrame({
        "completion_tokens_mean": [10.0, 20.0, 10.0],
        "regenerated": [3, 0, 2],
        "regenerated_tokens_mean": [8.0, math.nan, 5.0],
    })  # fmt: skip
    params = {"prompts_per_step": 4, "on_policy": {"group_size": 2}}
    artifact = SimpleNamespace(stage="train", frozen_spec={"params": params})
    monkeypatch.setattr(comparison, "open_artifact", lambda name: artifact)
    monkeypatch.setattr(comparison, "curves", lambda name: lines)
    assert comparison._sampled_tokens("train/x") == 40 * 8 + 3 * 8 + 2 * 5
    lines = lines[["completion_tokens_mean"]].assign(regenerated=0)
    assert comparison._sampled_tokens("train/x") == 40 * 8


def test_one_seed_or_a_checkpoint_can_be_compared(run):
    found = json.loads(run("compare", "tiny_grpo:0", "tiny_grpo:1", "--json"))
    assert found["settings"] == [{"field": "params.seed", "a": 0, "b": 1}]
    assert {row["verdict"] for row in found["scores"]} == {"one seed"}
    base = json.loads(run("compare", "tiny_grpo:all:0", "tiny_grpo", "--json"))
    score = next(row for row in base["scores"] if row["metric"] == "score" and row["family"] == "all")
    assert (score["a"], score["b"], score["verdict"]) == (0.5, 1.0, "higher")
    assert "there is no seed 9; there are 0, 1" in run("compare", "tiny_grpo:9", "tiny_grpo")
    assert "no checkpoint at step 5" in run("compare", "tiny_grpo:0:5", "tiny_grpo")
    assert "is not EXPERIMENT" in run("compare", "tiny_grpo:x", "tiny_grpo")


def test_the_comparison_is_a_page_too(run):
    run("compare", "tiny_grpo", "tiny_sdpo", "--html", "pair.html")
    text = Path("pair.html").read_text()
    assert "<h1>Comparison: tiny_grpo and tiny_sdpo</h1>" in text and text.count("<h3>") == 3
    assert "accuracy" in text and "<script" not in text
    assert "B is" in run("compare", "tiny_grpo", "tiny_sdpo")
    run("compare", "tiny_grpo", "tiny_sdpo", "--html", "pages/pair.html")
    for page in (Path("pair.html"), Path("pages/pair.html")):
        links = re.findall(r'href="([^"#:]+)"', page.read_text())
        assert links and [link for link in links if not (page.parent / link).is_file()] == []


def test_the_report_shows_completions_with_words_marked_and_text_escaped(study, monkeypatch):
    monkeypatch.chdir(study)
    text = builder("report")(json.loads(Path("results/plans/report/report/plan.json").read_text()))
    section = text[text.index('id="tiny-completions"') :]
    section = section[: section.index("</section>")]
    assert "<mark>Wait</mark>, <mark>maybe</mark> 3 &lt;/think&gt; \\boxed{3} &amp; &lt;b&gt;" in section
    assert section.count('<article class="problem">') == 8 and "Show 6 more problems" in section
    assert "right are base model 4, GRPO 8" in section


# --- chosen pairs in a report -----------------------------------------------------------------------------------------


def with_pairs(*pairs):
    """The study's config with a report `pairs`."""
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    return config | {"reports": {"pairs": {"experiments": ["tiny_grpo"], "compare": list(pairs)}}}


def test_a_report_shows_chosen_pairs_with_the_numbers_of_compare(study, run, monkeypatch):
    """Also of an experiment that the report does not show otherwise, and of single seeds."""
    monkeypatch.chdir(study)
    Workspace(with_pairs(["tiny_grpo", "tiny_sdpo"], ["tiny_grpo:0", "tiny_grpo:1"])).view_inputs("report", "pairs")
    text = builder("report")(json.loads(Path("results/plans/report/pairs/plan.json").read_text()))
    first, second = re.findall(r'<section id="compare.*?</section>', text, re.DOTALL)
    assert "tiny_grpo (A) and tiny_sdpo (B)" in first and first.count("<h3>") == 3
    found = json.loads(run("compare", "tiny_grpo", "tiny_sdpo", "--json"))
    for change in found["settings"]:
        assert f">{change['field']}</td>" in first
    score = next(row for row in found["scores"] if row["metric"] == "score" and row["family"] == "all")
    cells = [100 * score[name] for name in ("difference", "low", "high")]
    assert "{:.1f} points [{:.1f}, {:.1f}]".format(*cells).replace("-", "−") in first
    assert "only A right" in first and "0, 1, 2, 3" in first and "tokens sampled in training" in first
    assert "tiny_grpo:0 (A) and tiny_grpo:1 (B)" in second and "one seed" in second
    # The other sections know nothing of SDPO.
    assert "since there is no SDPO (c\u00a0=\u00a0s) run to compare with" in text


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["tiny_grpo"], r"`reports.pairs.compare.0`"),
        (["tiny_grpo", "tiny_sdop"], r"`reports.pairs.compare.0`: unknown experiment .*Did you mean `tiny_sdpo`"),
        (["tiny_grpo", "tiny_sdpo:7"], r"there is no seed 7; there are 0, 1"),
        (["tiny_grpo", "tiny_sdpo:all:5"], r"step 5 is not evaluated; evaluated are 0, 12"),
        (["tiny_grpo", "tiny_sdpo:x"], r"is not EXPERIMENT, EXPERIMENT:SEED"),
    ],
)
def test_a_pair_that_no_run_would_give_is_a_mistake_of_the_config(study, monkeypatch, pair, message):
    monkeypatch.chdir(study)
    with pytest.raises(UserError, match=message):
        Workspace(with_pairs(pair)).plan("report", "pairs")
