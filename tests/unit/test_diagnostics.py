"""Diagnostics: each formula on a case worked by hand, the stage on a small model, the table on known numbers."""

from __future__ import annotations

import copy
import csv
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from family_study import REPROMPT, Study
from selfdistill.artifacts.tables import read_rows
from selfdistill.diagnostics import (
    CLASSES,
    cuts,
    distinct_answers,
    ends_in_loop,
    first_thought,
    forks,
    quarter,
    token_classes,
)
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.plan.graph import Node
from selfdistill.plan.settings import load_config
from selfdistill.rollouts import grade_groups
from selfdistill.schema.errors import SettingError
from selfdistill.schema.shared import DiagnosticsFields
from selfdistill.schema.stages import DiagnosticsSpec
from selfdistill.stages import diagnostics as stage
from selfdistill.training.network import Network
from selfdistill.training.token_measures import Shown, class_gradients, token_measures
from selfdistill.views.__main__ import builder
from selfdistill.views.diagnostics import loss_share, part, whole
from small_specs import small
from synthetic import CONFIG, Said, build_study
from tiny import tiny_model

WORDS = ["maybe", "check", "hmm"]


# --- pure functions ---------------------------------------------------------------------------------------------------


def test_every_token_has_one_class():
    texts = ["<think>", "maybe", "A", "6", "check", "r6", "hmm", "no", "so", "0", "</think>"]
    assert token_classes(texts, WORDS, ["<think>"]) == [
        "other", "first thought word", "other", "number", "epistemic", "number", "epistemic", "other", "other",
        "number", "other",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "place"),
    [
        (["<think>", "\n", "Okay", ","], 2),
        (["<", "think", ">", " Wait"], 3),
        (["Wait", " <think>", "x"], 2),
        (["Hmm", ",", " so"], 0),
        (["\n", " So"], 1),
        (["<think>"], None),
    ],
)
def test_the_first_thought_word_follows_the_opening_mark(texts, place):
    assert first_thought(texts, ["<think>"]) == place


def test_quarters_and_positions_divide_a_completion():
    assert [quarter(place, 6) for place in range(6)] == [
        "1st quarter", "1st quarter", "2nd quarter", "3rd quarter", "3rd quarter", "4th quarter",
    ]  # fmt: skip
    parts = dict(cuts(["other"] * 6))
    assert parts["position"] == ["0", "1", "2", "3", "4 and later", "4 and later"]
    assert all(len(names) == 6 for names in parts.values())


def test_forks_are_where_the_student_is_undecided():
    # Student above 0.5 at places 0, 1 and 3; there the teacher has 0.9, 0.1 and 0.6.
    assert forks(np.array([0.6, 1.0, 0.5, 2.0]), np.array([0.9, 0.1, 3.0, 0.6]), 0.5) == (3, 2)
    assert forks(np.array([0.1]), np.array([2.0]), 0.5) == (0, 0)


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1, 2, 3, 3, 3, 3], True),
        ([1, 2, 3, 3, 3], False),
        ([9, 1, 2, 1, 2, 1, 2, 1, 2], True),
        ([1, 2, 1, 2, 1, 2, 1, 2, 9], False),
        ([], False),
        (list(range(65)) * 4, False),
        (list(range(64)) * 4, True),
    ],
)
def test_a_loop_is_four_equal_pieces_at_the_end(ids, loops):
    assert ends_in_loop(ids) is loops


def test_distinct_answers_do_not_count_those_that_are_missing():
    assert distinct_answers(["3", "4", "3", ""]) == 2


# --- tensors ----------------------------------------------------------------------------------------------------------


def models() -> tuple[Network, Network]:
    return Network(tiny_model(40, seed=0)), Network(tiny_model(40, seed=1))


ROWS = [Shown([5, 6, 7], [5, 6, 9, 9, 7], [8, 3, 2]), Shown([4, 5], [4, 4, 5], [11, 12, 13, 14, 2])]


def logits(network: Network, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """From the whole model, without the engine's packing [N, V]."""
    return network.model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]


def jsd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(KL(S || M) + KL(T || M)) / 2 with M = (S + T) / 2, written out."""
    s, t = student.softmax(-1), teacher.softmax(-1)
    m = (s + t) / 2
    return 0.5 * (s * (s / m).log()).sum(-1) + 0.5 * (t * (t / m).log()).sum(-1)


def test_measures_are_those_of_three_plain_passes():
    student, base = models()
    for row, found in zip(ROWS, token_measures(student, base, ROWS, 0.5, 1000), strict=True):
        with torch.no_grad():
            s = logits(student, row.prompt_ids, row.completion_ids)
            t = logits(base, row.context_ids, row.completion_ids)
            p = logits(base, row.prompt_ids, row.completion_ids)
        index = torch.tensor(row.completion_ids)[:, None]

        def chosen(x, index=index):
            return x.log_softmax(-1).gather(-1, index)[:, 0].numpy()

        np.testing.assert_allclose(found.gap, chosen(t) - chosen(s), atol=1e-5)
        np.testing.assert_allclose(found.pmi, chosen(t) - chosen(p), atol=1e-5)
        np.testing.assert_allclose(found.loss, jsd(s, t).numpy(), atol=1e-5)
        kl = (s.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum(-1)
        np.testing.assert_allclose(found.kl, kl.numpy(), atol=1e-5)
        entropies = -(t.softmax(-1) * t.log_softmax(-1)).sum(-1)
        np.testing.assert_allclose(found.teacher_entropy, entropies.numpy(), atol=1e-5)
        for place, token in enumerate(row.completion_ids):
            order = s[place].argsort(descending=True).tolist()
            assert found.alternatives[place] == next(other for other in order if other != token)


def test_the_gradient_of_reverse_kl_in_the_logits_is_the_known_one():
    """d KL(S || T) / dz = S (log S - log T - KL)."""
    student, base = models()
    (found, _) = token_measures(student, base, ROWS, 1.0, 1000)
    with torch.no_grad():
        s = logits(student, ROWS[0].prompt_ids, ROWS[0].completion_ids).log_softmax(-1)
        t = logits(base, ROWS[0].context_ids, ROWS[0].completion_ids).log_softmax(-1)
    kl = (s.exp() * (s - t)).sum(-1, keepdim=True)
    np.testing.assert_allclose(found.logit_gradient, (s.exp() * (s - t - kl)).norm(dim=-1).numpy(), atol=1e-5)


def test_class_gradients_are_those_of_automatic_differentiation_however_rows_are_batched():
    student, base = models()
    weights = {
        "all": [torch.full((len(row.completion_ids),), 1 / 8) for row in ROWS],
        "some": [torch.tensor([0.0, 1 / 8, 0.0]), torch.tensor([1 / 8, 0, 0, 0, 0])],
    }
    expected = {}
    for name, of_row in weights.items():
        loss = sum(
            (jsd(logits(student, row.prompt_ids, row.completion_ids),
                 logits(base, row.context_ids, row.completion_ids).detach()) * weight).sum()
            for row, weight in zip(ROWS, of_row, strict=True)
        )  # fmt: skip
        gradients = torch.autograd.grad(loss, list(student.model.parameters()))
        expected[name] = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    for budget in (1, 1000):
        found = class_gradients(student, base, ROWS, weights, 0.5, budget)
        assert found == pytest.approx(expected, rel=1e-4)
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_a_student_that_is_the_teacher_has_no_loss():
    _, base = models()
    rows = [Shown(row.prompt_ids, row.prompt_ids, row.completion_ids) for row in ROWS]
    for found in token_measures(base, base, rows, 0.5, 1000):
        np.testing.assert_allclose(found.loss, 0, atol=1e-6)
        np.testing.assert_allclose(found.gap, 0, atol=1e-6)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_measures_stored_completions_and_samples_branches(tmp_path, monkeypatch):
    begun, limits = [], []
    sample = TorchSampler.generate

    def generate(sampler, prompts, seeds, sampling):
        limits.append(sampling.max_tokens)
        return sample(sampler, prompts, seeds, sampling)

    def grade(prompts, groups, *others):
        begun.extend(one.logprobs.count(0.0) for group in groups for one in group)  # What was not sampled.
        return grade_groups(prompts, groups, *others)

    study = Study(tmp_path, "qwen3", None)
    evaluation = study.evaluate(study.model, [0], samples=2)
    solved = study.rollouts(samples=4)
    contexts = study.contexts("solution", solved)
    fields = DiagnosticsFields(branches=4, branch_samples=2, fork_entropy=0.0)
    spec = small(
        DiagnosticsSpec, steps=[0], words=["wait"], **fields.model_dump() | {"reprompt": REPROMPT}
        | {"max_reprompt_tokens": 600},
    )  # fmt: skip
    for node in (evaluation, solved, contexts):
        study.run(node)

    def measure(*given):
        found = token_measures(*given)
        for place, one in enumerate(found):
            one.student_entropy[place] = 99.0  # Each completion has its fork at another place.
        return found

    monkeypatch.setattr(stage, "token_measures", measure)
    monkeypatch.setattr(stage, "grade_groups", grade)
    monkeypatch.setattr(TorchSampler, "generate", generate)
    artifact = study.run(Node(spec, {"rollouts": evaluation, "base": study.model, "contexts": contexts}))
    tokens, completions, gradients = (
        pd.DataFrame(read_rows(artifact.payload / f"{name}.parquet")) for name in ("tokens", "completions", "gradients")
    )
    shown = completions[completions["has_context"]]
    assert len(completions) == len(read_rows(study.freeze(evaluation).payload / "rollouts.parquet"))
    for _, table in tokens.groupby("cut"):
        assert table["tokens"].sum() == shown["tokens"].sum()
        assert table["loss"].sum() == pytest.approx(tokens[tokens["cut"] == "class"]["loss"].sum())
    # The base model is both student and P: its gap is its PMI.
    np.testing.assert_allclose(tokens["gap"], tokens["pmi"], atol=1e-4)
    assert set(tokens.loc[tokens["cut"] == "class", "value"]) <= set(CLASSES)
    assert (shown["forks"] == shown["tokens"]).all() and (shown["undecided_forks"] <= shown["forks"]).all()
    assert completions["branch_reward"].notna().sum() == 4
    # The shortest beginning has its whole rest of the budget, whatever the longest leaves.
    assert begun == [1, 1, 2, 2, 3, 3, 4, 4] and limits == [evaluation.spec.sampling.max_tokens - 1]
    assert list(gradients["value"]) == [*CLASSES, "all"] and (gradients["norm"] >= 0).all()
    described = artifact.manifest["summary"]["step-0"]
    assert described["completions_without_context"] == len(completions) - len(shown)
    assert sum(described["loss_share"].values()) == pytest.approx(1.0)


# --- the table --------------------------------------------------------------------------------------------------------


def sums(rows: list[tuple[int, str, int, float]]) -> pd.DataFrame:
    """(problem, part, tokens, loss)."""
    table = pd.DataFrame(rows, columns=["row_id", "value", "tokens", "loss"])
    for name in ("kl", "gap", "pmi", "logit_gradient"):
        table[name] = table["loss"]
    return table


def test_shares_and_means_are_ratios_of_sums():
    table = sums([(0, "epistemic", 2, 3.0), (0, "other", 6, 1.0), (1, "other", 2, 4.0)])
    found = part([table], "epistemic")
    assert found["share_of_tokens"] == pytest.approx(2 / 10) and found["share_of_loss"] == pytest.approx(3 / 8)
    assert found["loss"] == pytest.approx(1.5) and found["completions"] == 1
    assert found["share_of_loss_low"] < 3 / 8 < found["share_of_loss_high"]
    # Two seeds: the mean of their shares, 3/8 and 1/2.
    other = sums([(0, "epistemic", 2, 2.0), (1, "other", 2, 2.0)])
    assert next(iter(loss_share([table, other], "epistemic"))) == pytest.approx((3 / 8 + 1 / 2) / 2)


def test_rates_of_completions():
    table = pd.DataFrame(
        {
            "row_id": [0, 0, 1, 1], "reward": [1.0, 0.0, 0.0, 0.0], "answer": ["3", "4", "", "5"],
            "tokens": [2, 2, 3, 3],
            "is_looping": [False, False, True, False], "has_context": [True, True, False, False],
            "forks": [3, 1, None, None], "undecided_forks": [1, 0, None, None], "branch_reward": [0.5, None, None, 0.0],
        }
    )  # fmt: skip
    found = whole([table])
    assert found["fork_rate"] == pytest.approx(1 / 4) and found["forks_per_completion"] == 2
    assert found["loop_rate"] == 0.25 and found["distinct_answers"] == 1.5
    assert found["pass_at_k"] == 0.5 and found["branch_viability"] == 0.25 and found["tokens"] == 10


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_diagnostics() -> dict:
    table = {"experiments": ["tiny_grpo", "tiny_sdpo"], "benchmarks": ["exam"], "branches": 1}
    return copy.deepcopy(CONFIG) | {"diagnostics": {"tiny": table}}


def said(*_: object) -> Said:
    return Said("correct", "wait it is", 4)


def test_the_table_has_a_row_per_part_and_no_run_is_repeated(project):
    plan = json.loads(build_study("diagnostics", "tiny", said, lambda *_: {}, with_diagnostics()).read_text())
    stored = json.loads(build_study("ood", "tiny_sdpo", said, lambda *_: {}, with_diagnostics()).read_text())
    evaluations = {row["evaluate_artifact"] for row in stored["rows"]}
    assert evaluations == {row["evaluate_artifact"] for row in plan["rows"] if row["experiment"] == "tiny_sdpo"}
    rows = list(csv.DictReader(io.StringIO(builder("diagnostics")(plan))))
    (row,) = [
        r for r in rows
        if (r["experiment"], r["seed"], r["cut"], r["value"]) == ("tiny_sdpo", "all", "class", "epistemic")
    ]  # fmt: skip
    found = [row[name] for name in ("share_of_tokens", "share_of_loss", "loss", "gradient_norm")]
    assert found == ["0.25", "0.75", "3", "0.5"]
    (row,) = [r for r in rows if (r["experiment"], r["seed"], r["cut"]) == ("tiny_grpo", "base", "completions")]
    assert (row["fork_rate"], row["branch_viability"], row["step"]) == ("0.5", "0.25", "0")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tiny", {"experiments": ["tiny_grop"]}, "`diagnostics.tiny.experiments`: .*tiny_grop.*tiny_grpo"),
        ("tiny", {"benchmarks": ["exams"]}, "`diagnostics.tiny.benchmarks`: .*exams.*exam"),
        ("huge", {}, "`diagnostics.huge`: .*huge"),
        ("tiny", {"alpha": 2}, "diagnostics.tiny.alpha"),
    ],
)
def test_mistakes_in_the_settings_are_one_line(name, change, message):
    config = with_diagnostics()
    config["diagnostics"] = {name: config["diagnostics"]["tiny"] | change}
    with pytest.raises(SettingError, match=message) as error:
        load_config(config)
    assert "\n" not in str(error.value)


def test_the_report_says_where_most_of_the_loss_lies(project):
    config = with_diagnostics()
    config["report"] = {"experiments": ["tiny_grpo", "tiny_sdpo"], "diagnostics": ["tiny"]}
    scalars = {"reward_mean": 0.5, "completion_tokens_mean": 10.0, "epistemic_count_mean": 1.0}
    plan = json.loads(build_study("report", "report", said, lambda *_: scalars, config).read_text())
    page = builder("report")(plan)
    assert "Where the loss lies" in page and "75.0\u00a0% in class epistemic" in page
