"""Groups without a signal are replaced: by hand, in a training, after a kill, and on several processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfdistill.schema.errors import Interrupted, UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.training import OnPolicy
from selfdistill.training.data import draw_indices
from selfdistill.training.methods import make_method
from selfdistill.training.refill import refill_indices, sample_with_signal, without_signal
from small_specs import small
from test_training_contexts import group
from training_session import (
    GRPO,
    SDPO,
    TOKENIZER,
    Killed,
    Session,
    Verdict,
    make_spec,
    run_in_processes,
    run_until,
    without_times,
)

FLAT, RIGHT, MIXED = (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)


def spec_with(method=GRPO, rounds: int = 2, **changes):
    spec = make_spec(method, **changes)
    return spec.model_copy(update={"on_policy": spec.on_policy.model_copy(update={"refill_rounds": rounds})})


def refilled(spec, *rounds, count: int = 40):
    """Groups and metrics where each round samples groups of these rewards; what was drawn; the prompts asked for."""
    asked, left = [], list(rounds)

    def sample(prompts, first):
        asked.append((list(prompts), first))
        made = zip(prompts, left.pop(0), strict=True)
        return [[replace(r, prompt=replace(r.prompt, row_id=row)) for r in group(0, *scores)] for row, scores in made]

    found = sample_with_signal(spec, 3, range(count), sample, make_method(spec, TOKENIZER, 256).plan_step)
    assert not left
    groups, drawn, counts = found
    assert len(drawn) == counts.get("groups_drawn", len(groups))
    return groups, counts, asked


def rewards(groups):
    return [tuple(rollout.reward for rollout in g) for g in groups]


def test_places_without_a_signal_get_other_problems_until_all_have_one():
    spec = spec_with()
    groups, found, asked = refilled(spec, [MIXED, FLAT, RIGHT, MIXED], [FLAT, MIXED], [MIXED])
    assert rewards(groups) == [MIXED] * 4
    drawn = [place for prompts, _ in asked for place in prompts]
    assert asked[0] == (draw_indices(spec, 3, 40), 0) and [first for _, first in asked] == [0, 4, 6]
    assert not set(drawn[4:]) & set(drawn[:4]) and len(set(drawn[4:])) == 3
    assert [g[0].prompt.row_id for g in groups] == [drawn[0], drawn[6], drawn[5], drawn[3]]
    assert found == {
        "groups_drawn": 7, "groups_with_signal": 4, "refill_rounds_used": 2, "kept_reward_mean": 0.5,
    }  # fmt: skip


def test_the_bound_leaves_a_place_empty_and_counts_it():
    groups, found, _ = refilled(spec_with(rounds=1), [MIXED, FLAT, MIXED, MIXED], [RIGHT])
    assert rewards(groups) == [MIXED, RIGHT, MIXED, MIXED]
    assert (found["groups_drawn"], found["groups_with_signal"], found["refill_rounds_used"]) == (5, 3, 1)


def test_nothing_is_drawn_where_all_have_a_signal_or_it_is_off():
    groups, found, asked = refilled(spec_with(), [MIXED] * 4)
    assert (len(asked), found["groups_drawn"], found["refill_rounds_used"]) == (1, 4, 0)
    groups, found, asked = refilled(make_spec(GRPO), [FLAT] * 4)
    assert rewards(groups) == [FLAT] * 4 and len(asked) == 1 and found == {}


def test_a_bound_that_empties_the_signal_is_one_line():
    with pytest.raises(UserError) as error:
        refilled(spec_with(), [FLAT] * 4, [RIGHT] * 4, [FLAT] * 4)
    assert str(error.value).startswith(
        "step 3: none of 12 groups has a learning signal after refill_rounds = 2 (mean reward 0.333). Use problems"
    )
    assert "\n" not in str(error.value)


def test_a_signal_is_what_the_method_learns_from():
    """SDPO learns from a group that is all right, and from none that is all wrong; GRPO from neither."""
    groups = [group(0, *FLAT), group(1, *RIGHT), group(2, *MIXED)]
    assert without_signal(make_method(make_spec(GRPO), TOKENIZER, 256).plan_step(groups)) == [0, 1]
    assert without_signal(make_method(make_spec(SDPO), TOKENIZER, 256).plan_step(groups)) == [0]


def test_problems_come_again_only_where_there_are_too_few():
    spec = spec_with()
    assert sorted(refill_indices(spec, 1, 1, [0, 1, 1], 6, 4)) == [2, 3, 4, 5]
    assert set(refill_indices(spec, 1, 1, [0, 1, 2], 4, 2)) <= {0, 1, 2, 3}
    draws = [tuple(refill_indices(spec, step, turn, [], 100, 5)) for step in (1, 2) for turn in (1, 2)]
    assert len(set(draws)) == 4


def test_it_is_in_no_key_while_off():
    plain = small(OnPolicy, group_size=4, sampling=make_spec(GRPO).on_policy.sampling)
    assert "refill_rounds" not in plain.identity()
    assert spec_with().on_policy.identity()["refill_rounds"] == 2


def hard(texts, prompts, stop_reasons):
    """Right is a length divisible by four: many groups have no success."""
    return [
        Verdict("correct" if right else "wrong", float(right))
        for right in (len(text.split()) % 4 == int(prompt.answer) for text, prompt in zip(texts, prompts, strict=True))
    ]


def sessions(tmp_path, name, **options):
    spec = spec_with(rounds=3, steps=3, prompts_per_step=4, prompts_per_update=2)
    return Session(tmp_path / name, spec, grade=hard, **options)


@pytest.fixture
def whole(tmp_path):
    session = sessions(tmp_path, "whole")
    session.run()
    return session


def test_a_training_refills_and_records_what_it_learns_from(whole, tmp_path):
    lines = whole.metrics()
    assert sum(line["refill_rounds_used"] for line in lines) > 0
    for line in lines:
        assert line["usable_group_share"] == line["groups_with_signal"] / 4
        stored = whole.rollouts[line["step"]]
        assert len(stored) == 4 * line["groups_drawn"] >= 16
        assert line["reward_mean"] == pytest.approx(sum(row["reward"] for row in stored) / len(stored))
    off = Session(tmp_path / "off", make_spec(GRPO, steps=3), grade=hard)
    off.run()
    assert off.metrics()[0]["usable_group_share"] < lines[0]["usable_group_share"]


@pytest.mark.parametrize(("which", "end"), [(0, Interrupted), (-1, Interrupted), (0, Killed)])
def test_a_run_stopped_in_the_middle_of_a_refill_ends_in_the_same_bytes(tmp_path, streams, whole, which, end):
    of_whole = list(streams)
    target = [at for at in of_whole if at[1] > 0][which]
    streams.clear()
    stopped = sessions(tmp_path, "stopped")

    run_until(stopped, lambda: target in streams, end)
    assert streams == of_whole[: of_whole.index(target) + 1]
    streams.clear()
    stopped.run()
    assert target in streams and (target[0], 0) not in streams, "groups of the first sampling are read, not sampled"
    assert stopped.weights() == whole.weights()
    assert without_times(stopped.metrics()) == without_times(whole.metrics())


def test_two_processes_draw_the_same_as_one(tmp_path, whole):
    both = sessions(tmp_path, "both", runtime=StageRuntime(processes=2, state_every_steps=1))
    assert run_in_processes(both, 2) == [0, 0]
    counts = ("groups_drawn", "groups_with_signal", "refill_rounds_used", "kept_reward_mean")
    assert [[line[name] for name in counts] for line in both.metrics()] == [
        [line[name] for name in counts] for line in whole.metrics()
    ]
