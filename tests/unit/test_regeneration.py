"""Context `regenerated`: what is written anew, who reads it, and that stops, kills and ranks change nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from selfdistill.artifacts.tables import write_rows
from selfdistill.estimate.arithmetic import step_cost
from selfdistill.estimate.memory import plan_memory
from selfdistill.estimate.workload import workload_of
from selfdistill.generation.base import Completion, sample_seed
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.methods import PurifiedOpsd, Sdpo
from selfdistill.schema.runtime import StageRuntime
from selfdistill.stages.shared import training_sampler
from selfdistill.stages.train import rollout_writer
from selfdistill.training import regeneration
from selfdistill.training.data import CONTEXT
from selfdistill.training.distributed import World
from selfdistill.training.methods import make_method, teacher_prompts
from test_estimate import make_work
from test_training_contexts import TEMPLATE, group
from tiny import tiny_model
from training_session import (
    EOS,
    REPROMPT,
    TOKENIZER,
    Killed,
    Session,
    make_prompts,
    make_spec,
    run_in_processes,
    run_until,
    without_times,
)

SDPO = Sdpo(context="regenerated", top_k=10, reprompt=REPROMPT)


def method_of(settings=None, **changes):
    return make_method(make_spec(settings or Sdpo(context="regenerated", reprompt=TEMPLATE, **changes)), TOKENIZER, 256)


def text_of(prompt) -> str:
    return TOKENIZER.decode(prompt.ids).split(" user ")[1].split(" <|im_end|>")[0]


def regenerated(groups, texts):
    """The groups, where these rollouts hold a completion of this text."""
    return [
        [replace(r, regenerated=replace(r, text=texts[place, i]) if (place, i) in texts else None)
         for i, r in enumerate(made)]
        for place, made in enumerate(groups)
    ]  # fmt: skip


def test_the_demonstration_of_each_rollout_is_written_anew_once():
    found = method_of().to_regenerate([group(0, 0, 1, 1), group(1, 0, 0), group(2, 0, 1)])
    assert {key: text_of(prompt) for key, prompt in found.items()} == {
        (0, 1): "which 0 solution <think> wait </think> maybe 1 solve",
        (0, 2): "which 0 solution <think> wait </think> maybe 2 solve",
        (2, 1): "which 2 so so solution <think> wait </think> maybe 1 solve",
    }
    assert list(method_of(exclude_own_success=False).to_regenerate([group(0, 0, 1, 1)])) == [(0, 1)]
    assert method_of(Sdpo(reprompt=TEMPLATE)).to_regenerate([group(0, 0, 1, 1)]) == {}


def test_the_teacher_reads_what_was_written_and_nothing_where_that_is_empty():
    groups = regenerated([group(0, 0, 1, 1), group(2, 0, 1)], {(0, 1): "so wait", (0, 2): "so so", (1, 1): " "})
    plans = [plan for row in method_of().plan_step(groups) for plan in row]
    shown = [text_of(plan.teachers[CONTEXT]) if plan.teachers else None for plan in plans]
    assert shown == [
        "which 0 solution so wait solve", "which 0 solution so so solve", "which 0 solution so wait solve", None, None,
    ]  # fmt: skip
    assert [plan.is_supervised for plan in plans] == [True, True, True, False, False]


def test_a_demonstration_that_was_cut_for_the_policy_counts_as_cut():
    long = [[replace(r, text=r.text + " so" * 200) for r in group(0, 0, 1)]]
    method = method_of(max_reprompt_tokens=60)
    prompts = []

    def sample(asked):
        prompts.extend(asked)
        return [[replace(group(0, 1)[0], prompt=prompt, text="so")] for prompt in asked]

    found = regeneration.regenerate(long, method.to_regenerate(long), sample, World("cpu"))
    assert [(prompt.is_truncated, len(prompt.prompt_ids)) for prompt in prompts] == [(True, 60)]
    [[shown, _]] = method.plan_step(found)
    assert text_of(shown.teachers[CONTEXT]) == "which 0 solution so solve" and shown.teachers[CONTEXT].is_truncated
    whole = regeneration.regenerate([group(0, 0, 1)], method.to_regenerate([group(0, 0, 1)]), sample, World("cpu"))
    assert not method.plan_step(whole)[0][0].teachers[CONTEXT].is_truncated


def test_any_method_with_a_context_reads_it():
    groups = regenerated([group(2, 0, 1)], {(0, 1): "so wait"})
    settings = PurifiedOpsd(context="regenerated", reprompt=TEMPLATE)
    plans = method_of(settings).plan_step(groups)[0]
    assert {name: text_of(prompt) for name, prompt in plans[0].teachers.items()} == {
        "context": "which 2 so so solution so wait solve", "plain": "which 2 so so",
        "reference_only": "solution so wait solve",
    }  # fmt: skip


def test_results_come_back_to_the_rollout_that_was_shown():
    groups = [group(0, 0, 1, 1), group(1, 0, 0), group(2, 0, 1)]
    shown = method_of().to_regenerate(groups)
    asked = []

    def sample(prompts):
        asked.extend(prompts)
        return [[replace(group(0, 1)[0], prompt=p, text=f"again {n}")] for n, p in enumerate(prompts)]

    found = regeneration.regenerate(groups, shown, sample, World("cpu"))
    assert [prompt.problem_id for prompt in asked] == ["p0", "p0", "p2"]
    assert [prompt.prompt_ids for prompt in asked] == [text.ids for text in shown.values()]
    assert [[r.regenerated.text if r.regenerated else None for r in made] for made in found] == [
        [None, "again 0", "again 1"], [None, None], [None, "again 2"],
    ]  # fmt: skip
    assert [[replace(r, regenerated=None) for r in made] for made in found] == groups


def test_counts_are_of_what_was_written():
    cut = replace(group(0, 0)[0], completion=Completion([7, 7, 7], [0.0] * 3, "length"))
    [made] = regenerated([group(0, 0, 1)], {(0, 1): "so"})
    assert regeneration.counts([made, [replace(made[0], regenerated=cut)]]) == {
        "regenerated": 2, "regenerated_reward_mean": 0.5, "regenerated_tokens_mean": 2.0,
        "regenerated_truncation_rate": 0.5,
    }  # fmt: skip
    assert regeneration.counts([group(0, 0, 0)]) == {"regenerated": 0}


def session(tmp_path, name, rounds=0, **options):
    spec = make_spec(SDPO, steps=3)
    on_policy = spec.on_policy.model_copy(update={"refill_rounds": rounds})
    return Session(tmp_path / name, spec.model_copy(update={"on_policy": on_policy}), **options)


@pytest.fixture
def whole(tmp_path):
    made = session(tmp_path, "whole")
    made.run()
    return made


def test_a_step_samples_each_demonstration_once_more_from_the_present_policy(whole):
    """The first step once more by hand: prompt, seed and sampler follow from the docs, not from the loop."""
    rows = whole.rollouts[1]
    line = whole.metrics()[0]
    shown = [row for row in rows if row["regenerated"] is not None]
    assert line["regenerated"] == len(shown) > 0 and line["demonstration_share"] > 0
    assert all(row["reward"] == 1 for row in shown)
    prompts = {prompt.problem_id: prompt for prompt in make_prompts()}
    sampler = TorchSampler(tiny_model(len(TOKENIZER)), [EOS], shares_model=True)
    for number, row in enumerate(shown):
        text = f"{prompts[row['problem_id']].question} solution {row['completion']} solve"
        messages = [{"role": "user", "content": text}]
        ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        seed = sample_seed(0, "rollout", 1, regeneration.FIRST_PLACE + number, row["row_id"], 0)
        [[completion]] = sampler.generate([ids], [[seed]], whole.spec.on_policy.sampling)
        assert TOKENIZER.decode(completion.token_ids, skip_special_tokens=True) == row["regenerated"]


def test_its_tokens_count_as_sampled(whole):
    for line in whole.metrics():
        tokens = sum(row["completion_tokens"] for row in whole.rollouts[line["step"]])
        written = line["regenerated"] * line["regenerated_tokens_mean"]
        assert line["tokens_per_second"] * line["seconds_step"] == pytest.approx(tokens + written)


@pytest.mark.parametrize("end", [Interrupted, Killed])
def test_a_run_stopped_while_it_regenerates_ends_in_the_same_bytes(tmp_path, streams, whole, end):
    target = (2, regeneration.FIRST_PLACE)
    assert target in streams
    streams.clear()
    stopped = session(tmp_path, "stopped")

    run_until(stopped, lambda: target in streams, end)
    streams.clear()
    stopped.run()
    assert target in streams and (2, 0) not in streams, "the groups of the step are read, not sampled again"
    assert stopped.weights() == whole.weights()
    assert without_times(stopped.metrics()) == without_times(whole.metrics())


def test_replaced_groups_are_regenerated_too(tmp_path, streams):
    made = session(tmp_path, "refilled", rounds=2, grade=lambda texts, prompts, stops: _rarely(texts))
    made.run()
    rounds = sum(line["refill_rounds_used"] for line in made.metrics())
    places = [first for _, first in streams if first >= regeneration.FIRST_PLACE]
    assert rounds > 0 and len(places) > 3 and any(place > regeneration.FIRST_PLACE for place in places)
    for line in made.metrics():
        assert line["regenerated"] == sum(row["regenerated"] is not None for row in made.rollouts[line["step"]])


def _rarely(texts):
    right = [len(text.split()) % 5 == 0 for text in texts]
    return [SimpleNamespace(outcome="correct" if ok else "wrong", reward=float(ok), extracted="", feedback="")
            for ok in right]  # fmt: skip


def test_two_processes_write_the_same_as_one(tmp_path, whole):
    both = session(tmp_path, "both", runtime=StageRuntime(processes=2, state_every_steps=1))
    assert run_in_processes(both, 2) == [0, 0]
    names = ("regenerated", "regenerated_reward_mean", "regenerated_tokens_mean", "demonstration_share")
    assert [[line[name] for name in names] for line in both.metrics()] == [
        [line[name] for name in names] for line in whole.metrics()
    ]


def test_the_text_is_a_column_of_these_trainings_alone(whole, tmp_path):
    for settings, has_it in ((SDPO, True), (Sdpo(reprompt=REPROMPT), False)):
        spec = make_spec(settings)
        payload = tmp_path / settings.context
        (payload / spec.rollouts_file(1)).parent.mkdir(parents=True)
        rollout_writer(SimpleNamespace(artifact=SimpleNamespace(payload=payload)), spec)(1, whole.rollouts[1])
        table = pq.read_table(payload / spec.rollouts_file(1))
        assert ("regenerated" in table.column_names) is has_it
        if has_it:
            assert table["regenerated"].null_count == len(table) - whole.metrics()[0]["regenerated"]


def test_an_engine_has_room_for_the_longer_prompts(tmp_path):
    write_rows(tmp_path / "prompts.parquet", [{"prompt_ids": [1] * 20}], ("prompt_ids",))
    job = SimpleNamespace(artifact=SimpleNamespace(input=lambda role: SimpleNamespace(payload=tmp_path)))
    wide = Sdpo(context="regenerated", reprompt=REPROMPT, max_reprompt_tokens=300)
    assert training_sampler._max_positions(job, make_spec(wide)) == 300 + 12
    assert training_sampler._max_positions(job, make_spec(Sdpo(reprompt=REPROMPT, max_reprompt_tokens=300))) == 20 + 12


def test_an_estimate_counts_its_tokens():
    assert (SDPO.regenerated(8), SDPO.regenerated(1), Sdpo(reprompt=REPROMPT).regenerated(8)) == (2, 1, 0)
    plain, more = make_work(), make_work(regenerated_rows=16, regeneration_prompt=1000)
    assert step_cost(more).sampled_tokens == step_cost(plain).sampled_tokens + 16 * 900
    # A forward pass over 1,000 + 900 tokens: layers, attention, and the head on 900.
    sizes = plain.dimensions
    one = (
        2 * 1900 * 10 * sizes.layer_parameters
        + 4 * sizes.query_width * 10 * 1900**2 / 2
        + 2 * 900 * sizes.head_parameters
    )
    assert step_cost(more).sampling_flops - step_cost(plain).sampling_flops == pytest.approx(16 * one)
    assert (plain.longest_sampled, more.longest_sampled) == (1000, 1900)
    spec = make_spec(SDPO.model_copy(update={"max_reprompt_tokens": 300}))
    work = workload_of(spec, StageRuntime(), sizes, max_prompt_tokens=20, processes=1, is_sharded=False)
    assert (work.regenerated_rows, work.longest_sampled) == (2 * 4, 300 + 12)


def test_the_engine_of_an_estimate_has_room_for_fewer_of_the_longer_completions():
    settings = {"engine": "vllm", "is_sharded": False, "processes": 1}
    plain, more = (plan_memory(make_work(**settings, regeneration_prompt=n), 80 * 10**9) for n in (0, 4100))
    assert plain.cached_completions == pytest.approx(5 * more.cached_completions, abs=5)


def test_the_student_s_thinking_is_that_of_the_prompt_which_the_policy_completes(monkeypatch):
    asked = []

    def encode(tokenizer, messages, kind, text, template, thinking, max_tokens):
        asked.append((kind, thinking))
        return [1], False

    monkeypatch.setattr(teacher_prompts, "encode_context", encode)
    settings = Sdpo(context="regenerated", reprompt=TEMPLATE, teacher_thinking=True)
    method = make_method(make_spec(settings, thinking=False), TOKENIZER, 256)
    found = regenerated([group(0, 0, 1)], {(0, 1): "so"})
    assert [text.ids for text in method.to_regenerate(found).values()] == [[1]]
    assert method.plan_step(found)[0][0].teachers[CONTEXT].ids == [1]
    assert asked == [("solution", False), ("regenerated", True)]


def test_a_method_that_shows_what_it_has_not_asked_for_is_told_so():
    with pytest.raises(ValueError, match="to_regenerate of this method has not asked"):
        method_of().plan_step([group(0, 0, 1)])
