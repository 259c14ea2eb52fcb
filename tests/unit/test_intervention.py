"""Forced beginnings, banned words and token budgets: in the samplers, in the stage, in the plan, in the table."""

from __future__ import annotations

import copy
import csv
import io
import json

import pytest
import torch

from family_study import Study
from selfdistill.artifacts.store import Artifact
from selfdistill.artifacts.tables import read_rows
from selfdistill.epistemic import tokens_of
from selfdistill.generation import Completion, sample_seed
from selfdistill.generation.intervention import Intervention
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config
from selfdistill.plan.views import plan_view
from selfdistill.schema.assets import AssetLock
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import SettingError, UserError
from selfdistill.schema.shared import InterventionFields
from selfdistill.views.__main__ import builder
from synthetic import CONFIG, Said, build_study, kind_of
from tiny import tiny_model, tiny_tokenizer

VARIANTS = {"maybe": {"prefix": "<think> maybe"}, "short": {"max_tokens": 8}, "sure": {"banned_words": ["wait"]}}


def with_variants() -> dict:
    config = copy.deepcopy(CONFIG) | {"variants": VARIANTS}
    for name in ("tiny_grpo", "tiny_sdpo"):
        config["experiments"][name]["variants"] = list(VARIANTS)
    return config


# --- token ids --------------------------------------------------------------------------------------------------------


def test_a_word_is_every_token_that_is_it_by_itself():
    vocabulary = {"wait": 3, "ĠWait": 4, "▁wait": 5, "waiting": 6, "Ġhmm": 7}
    assert tokens_of(vocabulary, ["Wait", "maybe"]) == {"wait": [3, 4, 5], "maybe": []}


def test_prefix_and_words_become_ids_of_the_tokenizer():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.get_vocab()
    found = Intervention.of(InterventionFields(prefix="<think> maybe", banned_words=["wait", "check"]), tokenizer)
    assert found.prefix == (ids["<think>"], ids["maybe"])
    assert found.banned == tuple(sorted((ids["wait"], ids["check"])))
    assert Intervention.of(InterventionFields(), tokenizer) == Intervention()


def test_what_the_tokenizer_cannot_say_is_one_line():
    with pytest.raises(UserError, match="prefix: the model's tokenizer has no token for a part of 'maybe banana'"):
        Intervention.of(InterventionFields(prefix="maybe banana"), tiny_tokenizer())
    with pytest.raises(UserError, match="banned_words: 'perhaps' is not a single token of this model"):
        Intervention.of(InterventionFields(banned_words=["perhaps"]), tiny_tokenizer())


def test_the_prefix_is_part_of_the_completion_and_of_its_budget():
    forced = Intervention(prefix=(7, 8), banned=(9,))
    assert forced.prompt([1, 2]) == [1, 2, 7, 8]
    assert forced.sampling(Sampling(max_tokens=10)).max_tokens == 8
    whole = forced.completion(Completion([5, 2], [-0.5, -0.25], "eos"))
    assert whole == Completion([7, 8, 5, 2], [0.0, 0.0, -0.5, -0.25], "eos")
    with pytest.raises(UserError, match="its 2 tokens leave nothing of max_tokens = 2"):
        forced.sampling(Sampling(max_tokens=2))
    with pytest.raises(RuntimeError, match="mask"):
        forced.completion(Completion([9], [-1.0], "length"))


def test_banned_tokens_are_never_drawn_and_logprobs_are_of_what_is_left():
    model = tiny_model(40)
    sampler = TorchSampler(model, [2])
    prompt, seeds, sampling = [5, 6, 7], [[sample_seed(0, n) for n in range(40)]], Sampling(max_tokens=12)
    free = sampler.generate([prompt], seeds, sampling)[0]
    common = max(range(40), key=lambda token: sum(completion.token_ids.count(token) for completion in free))
    sampler.banned = (common, 11)
    banned = sampler.generate([prompt], seeds, sampling)[0]
    assert any(common in completion.token_ids for completion in free)
    assert not any({common, 11} & set(completion.token_ids) for completion in banned)
    first = banned[0]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    left = 1 - probabilities[common] - probabilities[11]
    assert first.logprobs[0] == pytest.approx(float((probabilities[first.token_ids[0]] / left).log()), abs=1e-5)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"), "qwen3", None)


def test_an_evaluation_begins_as_told_and_says_no_banned_word(study):
    plain = study.run(study.evaluate(study.model, [0], samples=4))
    rows = read_rows(plain.payload / "rollouts.parquet")
    assert any("Wait" in row["completion"] for row in rows)
    changed = study.run(study.evaluate(study.model, [0], samples=4, prefix="Hmm, ", banned_words=["wait"]))
    found = read_rows(changed.payload / "rollouts.parquet")
    assert [(r["row_id"], r["sample"]) for r in found] == [(r["row_id"], r["sample"]) for r in rows]
    assert all(row["completion"].startswith("Hmm, ") for row in found)
    forced = len(found[0]["completion_ids"]) - sum(logprob != 0.0 for logprob in found[0]["logprobs"])
    assert forced > 0 and all(row["completion_tokens"] <= 40 for row in found)
    share = sum("wait" in row["completion"].lower().split() for row in found) / len(found)
    assert changed.manifest["summary"]["step-0"]["banned_word_share"] == pytest.approx(share)
    assert "banned_word_share" not in plain.manifest["summary"]["step-0"]


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_variants_are_settings_of_an_evaluation_and_the_plain_key_stays():
    planner = Planner(load_config(with_variants()), AssetLock(assets={}))
    plain = Planner(load_config(copy.deepcopy(CONFIG)), AssetLock(assets={}))
    args = ("tiny", None, [0], "exam")
    assert planner.evaluation(*args).key == plain.evaluation(*args).key
    specs = {name: planner.evaluation(*args, name).frozen_spec["params"] for name in VARIANTS}
    before = plain.evaluation(*args).frozen_spec["params"]
    assert specs["maybe"] == before | {"prefix": "<think> maybe"}
    assert specs["sure"] == before | {"banned_words": ["wait"]}
    assert specs["short"] == before | {"sampling": before["sampling"] | {"max_tokens": 8}}


def test_the_table_of_variants_leaves_out_what_a_sweep_made():
    config = with_variants()
    config["experiments"]["tiny_grpo"]["sweep"] = {"group_size": [2]}
    planner = Planner(load_config(config), AssetLock(assets={}))
    rows = plan_view(planner, "forced", "tiny").rows
    assert {row["experiment"] for row in rows} == {"tiny_grpo", "tiny_sdpo"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {"maybe": {}}}, "needs at least one of prefix, banned_words and max_tokens"),
        ({"variants": {"maybe": {"banned_words": [" "]}}}, "holds an empty word"),
        ({"variants": {}}, "no variant `maybe`|unknown variant|variant"),
    ],
)
def test_mistakes_in_variants_are_one_line(change, message):
    with pytest.raises(SettingError, match=message):
        load_config(with_variants() | change)


# --- the table --------------------------------------------------------------------------------------------------------


def said(artifact: Artifact, step: int, family: str, row: int, sample: int) -> Said:
    """Plain: base 2 of 4 right, SDPO 0 of 4. After `maybe`: base 3 of 4, SDPO 3 of 4 (the habit was suppressed)."""
    place = 2 * row + sample
    forced = artifact.frozen_spec["params"].get("prefix")
    right = 3 if forced else {"base": 2, "solution": 0}.get(kind_of(artifact), 2)
    return Said("correct" if place < right else "wrong", "wait it is", 10)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_holds_change_and_gap_of_every_variant(project):
    plan = json.loads(build_study("forced", "tiny", said, lambda *_: {}, with_variants()).read_text())
    rows = list(csv.DictReader(io.StringIO(builder("forced")(plan))))

    def cell(column: str, **wanted: str) -> float:
        (row,) = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
        return float(row[column])

    sdpo = {"experiment": "tiny_sdpo", "seed": "all", "family": "all"}
    assert cell("avg_at_k", **sdpo, variant="plain") == 0.0
    assert cell("gap_to_base", **sdpo, variant="plain") == -0.5
    assert cell("avg_at_k", **sdpo, variant="maybe") == 0.75
    assert cell("change_to_plain", **sdpo, variant="maybe") == 0.75
    assert cell("gap_to_base", **sdpo, variant="maybe") == 0.0
    base = sdpo | {"seed": "base"}
    assert cell("change_to_plain", **base, variant="maybe") == 0.25
    assert {row["variant"] for row in rows} == {"plain", *VARIANTS}


def test_the_report_asks_whether_a_habit_was_suppressed(project):
    config = with_variants()
    config["report"] = {"experiments": ["tiny_grpo", "tiny_sdpo"], "forced": ["tiny"]}
    scalars = {"reward_mean": 0.5, "completion_tokens_mean": 10.0, "epistemic_count_mean": 1.0}
    plan = json.loads(build_study("report", "report", said, lambda *_: scalars, config).read_text())
    page = builder("report")(plan)
    assert "Suppressed or forgotten?" in page and "gap to base in the same way" in page
