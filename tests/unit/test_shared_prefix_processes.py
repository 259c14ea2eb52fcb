"""Long prompts in several processes: rows of one prompt are dealt to one rank, and all ranks do the same passes."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from selfdistill.schema.common import Optimiser
from selfdistill.schema.methods import Rlcsd, Sdpo, Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import micro_batches, prefix
from selfdistill.training.components import build_components
from selfdistill.training.data import CONTEXT, PLAIN, Row, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World
from selfdistill.training.micro_batches import MicroBatchPlanner
from selfdistill.training.prefix import Prefixes
from selfdistill.training.sharding import whole
from selfdistill.training.update import Updater
from test_shared_prefix import rows_of
from test_training_processes import assert_same_training, run_alone
from tiny import tiny_model
from training_session import REPROMPT, TOKENIZER, Session, make_spec, ranks, run_in_processes

LENGTHS = {"none": (2, 1), "full": (2, 1), "hybrid": (4, 2)}  # Processes and nodes.


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """A function that returns the lengths of prompts that each rank read by themselves so far, idle passes too."""
    read, file = prefix.read_prompt, tmp_path / "reads.jsonl"

    def noted(network, prompt):
        with file.open("a") as lines:
            lines.write(json.dumps([ranks()[0], len(prompt)]) + "\n")
        return read(network, prompt)

    monkeypatch.setattr(prefix, "read_prompt", noted)

    def found(processes: int = 1) -> list[list[int]]:
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [[length for rank, length in lines if rank == number] for number in range(processes)]

    return found


def planner(rank: int = 0, ranks: int = 2, **changes) -> MicroBatchPlanner:
    settings = {"rank": rank, "ranks": ranks, "in_step": False, "can_share": True, "unpadded": False, "budget": 100_000}
    return MicroBatchPlanner(**settings | changes)


def dealt(rows: list[Row], **changes) -> list[list[int]]:
    """The places of each rank, sorted."""
    by_rank = [planner(rank, **changes).plan(rows) for rank in range(changes.get("ranks", 2))]
    return [sorted(place for micro in plan if micro.counts for place in micro.places) for plan in by_rank]


def every_second(rows: list[Row]) -> list[list[int]]:
    places = [place for place, row in enumerate(rows) if row.plan.has_gradient]
    places.sort(key=lambda place: len(rows[place].prompt_ids) + len(rows[place].completion_ids))
    return [sorted(places[::2]), sorted(places[1::2])]


@pytest.mark.parametrize("in_step", [False, True])
def test_rows_of_a_prompt_go_to_one_rank_where_that_is_faster(in_step):
    """Five groups, of which every second row by length would be on either rank."""
    rows = rows_of(5, 700, [9, 30, 2, 17], len(TOKENIZER))
    by_rank = dealt(rows, in_step=in_step)
    assert sorted(place for own in by_rank for place in own) == list(range(20))
    groups = [{place // 4 for place in own} for own in by_rank]
    assert sorted(map(len, groups)) == [2, 3] and not groups[0] & groups[1]


@pytest.mark.parametrize("in_step", [False, True])
def test_rows_of_a_prompt_are_spread_where_one_rank_would_have_too_much(in_step):
    """One group of long completions, one of short ones, for two ranks; rows without long prompts; nothing to share."""
    uneven = rows_of(1, 700, [3000] * 4, 5)[:4] + rows_of(1, 800, [3] * 4, 5)[:4]
    short, long = rows_of(2, 20, [9, 30, 2, 17], 5), rows_of(4, 700, [9, 30], 5)
    for rows, can_share in ((uneven, True), (short, True), (long, False)):
        assert dealt(rows, in_step=in_step, can_share=can_share) == every_second(rows)


def test_ranks_in_step_spread_rows_where_they_would_wait_for_each_other():
    """Two groups, a row a pass. With a whole group each rank has less to do, but a long row is beside a short one."""
    rows = rows_of(1, 700, [10, 12, 2900, 3000], 5)[:4] + rows_of(1, 600, [1450, 1480, 1490, 1500], 5)[:4]
    assert sorted(dealt(rows, budget=1)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dealt(rows, budget=1, in_step=True) == every_second(rows)
    plan = planner(budget=1, in_step=True).plan(rows)
    assert not any(micro.read_by_a_rank or micro.shared_prompt(CONTEXT) for micro in plan)


def test_all_ranks_plan_the_same_passes():
    """Three groups for two ranks, a row a micro-batch: every place is there once, and prompts are read side by side."""
    rows = rows_of(3, 700, [9, 30, 2, 17], len(TOKENIZER))
    plans = [planner(rank, in_step=True, budget=1).plan(rows) for rank in range(2)]
    assert len(plans[0]) == len(plans[1])
    assert [micro.read_by_a_rank for micro in plans[0]] == [micro.read_by_a_rank for micro in plans[1]]
    assert sorted(place for plan in plans for micro in plan if micro.counts for place in micro.places) == list(
        range(12)
    )
    alone = planner(0, ranks=1, in_step=True, budget=1).plan(rows)
    # The first row of each group reads.
    assert [micro.read_by_a_rank == {CONTEXT} for micro in alone] == [True, False, False, False] * 3
    assert planner(1, in_step=True).plan([]) == []


@pytest.mark.parametrize("budget", [1, 100_000])
@pytest.mark.parametrize("kind", ["fixed", "trust_region"])
@pytest.mark.parametrize("sharding", list(LENGTHS))
def test_each_group_is_read_once_by_all_processes_together(tmp_path, reads, sharding, kind, budget):
    """Gradients are those of one process that reads each row whole. With sharded weights ranks read side by side."""
    rows = rows_of(5, 700, [9, 30, 2, 17], len(TOKENIZER))
    processes, nodes = LENGTHS[sharding]
    teacher = Teacher(kind=kind, **({"rate": 0.3} if kind == "trust_region" else {}))
    spec = make_spec(Sdpo(reprompt=REPROMPT, top_k=20, teacher=teacher))

    def update(runtime: StageRuntime, world: World) -> dict[str, torch.Tensor]:
        updater = build_components(tiny_model(len(TOKENIZER)), TOKENIZER, spec, runtime, world).updater
        updater.run([rows], 1, lambda is_common: None)
        assert not updater.teacher.prefixes._kept
        return {name: whole(parameter.grad) for name, parameter in updater.student.model.named_parameters()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_batches, "LEAST_TOKENS", 10**6)
        patch.setattr(prefix, "LEAST_TOKENS", 10**6)
        expected = update(StageRuntime(), World("cpu"))
    assert reads() == [[]]

    def run():
        runtime = StageRuntime(processes=processes // nodes, sharding=sharding, micro_batch_tokens=budget)
        for name, gradient in update(runtime, World.of(runtime)).items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-3)

    assert run_in_processes(SimpleNamespace(run=run), processes, nodes) == [0] * processes
    found = reads(processes)
    # Weights that are not sharded are copied before they first change, so policy and first policy have one prefix.
    networks = 2 if kind == "trust_region" and (sharding != "none" or budget > 1) else 1
    assert sum(length == 700 for own in found for length in own) == 5 * networks
    if sharding != "none":
        assert len({len(own) for own in found}) == 1
    else:
        assert all(length == 700 for own in found for length in own)


METHODS = {
    "sdpo": Sdpo(top_k=10, reprompt=REPROMPT, teacher=Teacher(kind="ema", rate=0.2)),
    "rlcsd": Rlcsd(reprompt=REPROMPT),
}


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("sharding", list(LENGTHS))
def test_several_processes_train_what_one_does(tmp_path, monkeypatch, reads, method, sharding):
    """Contexts that some rows lack, statistics before the updates, several updates; every prompt counts as long."""
    spec = make_spec(METHODS[method], steps=3, checkpoint_every=3)
    one = run_alone(tmp_path / "one", spec)
    assert reads() == [[]]
    monkeypatch.setattr(micro_batches, "LEAST_TOKENS", 4)
    monkeypatch.setattr(prefix, "LEAST_TOKENS", 4)
    processes, nodes = LENGTHS[sharding]
    for budget in (1, 16384):
        runtime = StageRuntime(
            state_every_steps=1, processes=processes // nodes, sharding=sharding, micro_batch_tokens=budget
        )
        several = Session(tmp_path / str(budget), spec, runtime)
        assert run_in_processes(several, processes, nodes) == [0] * processes
        assert_same_training(one, several)
    found = reads(processes)
    # Two groups are too few for four processes.
    assert any(length > 2 for own in found for length in own) or processes == 4
    if sharding != "none":
        assert len({len(own) for own in found}) == 1


def test_a_rank_without_long_prompts_knows_what_the_other_reads():
    """Rank 0 has rows of a long prompt, one of them without the second context; rank 1 has rows without a teacher."""
    shown, plain = TeacherPrompt([5] * 700), TeacherPrompt([6] * 700)
    rows = [
        Row([7, 8], [9, 10, 11], RowPlan(teachers={CONTEXT: shown, PLAIN: plain}), [-1.0] * 3),
        Row([7, 8], [9, 12], RowPlan(teachers={CONTEXT: shown, PLAIN: plain}), [-1.0] * 2),
        Row([7, 8], [9, 13, 5, 6], RowPlan(teachers={CONTEXT: shown}), [-1.0] * 4),
        *(Row([7, 8, 9], [5, 6] * 200, RowPlan(), [-1.0] * 400) for _ in range(2)),
    ]
    for budget in (1, 100_000):
        plans = [planner(rank, in_step=True, budget=budget).plan(rows) for rank in range(2)]
        assert [micro.read_by_a_rank for micro in plans[0]] == [micro.read_by_a_rank for micro in plans[1]]
        assert any(micro.read_by_a_rank for micro in plans[0])


@pytest.mark.parametrize("seed", range(100))
def test_all_ranks_do_the_same_passes_whatever_their_rows(monkeypatch, seed):
    """Random rows of a few prompts, long or not, under contexts that some of them lack; one or two networks."""
    draw = random.Random(seed)
    monkeypatch.setattr(micro_batches, "LEAST_TOKENS", 4)
    monkeypatch.setattr(prefix, "LEAST_TOKENS", 4)
    prompts = [TeacherPrompt([number] * draw.randint(2, 12)) for number in range(3)]
    rows = []
    for _ in range(draw.randint(1, 60)):
        teachers = {name: draw.choice(prompts) for name in (CONTEXT, PLAIN) if draw.random() < 0.8}
        completion = [7] * draw.randint(1, 40)
        rows.append(Row([5, 6], completion, RowPlan(has_gradient=draw.random() < 0.9, teachers=teachers)))
    size, budget = draw.randint(2, 4), draw.choice([1, 100, 200, 400, 10_000])
    names = draw.sample([CONTEXT, PLAIN], draw.randint(1, 2))
    done: list[tuple[str, int]] = []
    networks = [
        SimpleNamespace(
            pack=lambda *rows: None,
            hidden=lambda packed, number=number: done.append(("rows", number)),
            evaluating=nullcontext,
        )
        for number in range(2)
    ]
    # The first policy is the present one until it is copied.
    second = draw.choice(networks)
    monkeypatch.setattr(prefix, "read_prompt", lambda network, _: done.append(("read", networks.index(network))) or 1)
    monkeypatch.setattr(prefix, "hidden_after_prompt", lambda network, *_: network.hidden(None))
    by_rank = []
    for rank in range(size):
        prefixes = Prefixes()

        def shown(prompts, completions, reading, prefixes=prefixes):
            for network in (networks[0], second):
                prefixes.hidden(network, [prompt for prompt in prompts if prompt], completions, reading)

        updater = SimpleNamespace(
            teacher=SimpleNamespace(prefixes=prefixes, shown=shown), world=SimpleNamespace(is_sharded=True)
        )
        # Twice, as where statistics come before the update.
        plan = planner(rank, size, in_step=True, budget=budget).plan(rows)
        for micro in [*plan, *plan]:
            list(Updater._passes(updater, micro, names))
        by_rank.append(list(done))
        done.clear()
    assert all(passes == by_rank[0] for passes in by_rank)


@pytest.mark.parametrize("active", [1, 3])
@pytest.mark.parametrize("method", ["sdpo", "rlcsd"])
def test_ranks_with_fewer_rows_in_a_later_update_do_the_same_passes(method, active):
    """Rows of the second update for two ranks: one for each but one more, or one alone. The first update has four."""
    rows = rows_of(2, 30, [9, 30, 2, 17], len(TOKENIZER))
    updates = [rows[:4], rows[4 : 4 + active]]
    settings = METHODS[method]
    spec = make_spec(settings, optimiser=Optimiser(learning_rate=1e-3))
    if method == "rlcsd":
        for row in (*updates[0], *updates[1]):
            row.plan.teachers["wrong"] = TeacherPrompt(row.plan.teachers[CONTEXT].ids[::-1])

    def update(runtime: StageRuntime, world: World) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        updater = build_components(tiny_model(len(TOKENIZER)), TOKENIZER, spec, runtime, world).updater
        found = updater.run(updates, 2, lambda is_common: None)
        return found, {name: whole(parameter) for name, parameter in updater.student.model.named_parameters()}

    expected, weights = update(StageRuntime(), World("cpu"))

    def run():
        runtime = StageRuntime(processes=2, sharding="full", micro_batch_tokens=1)
        found, own = update(runtime, World.of(runtime))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
        for name, weight in own.items():
            torch.testing.assert_close(weight, weights[name], atol=1e-4, rtol=1e-3)

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]


def test_an_idle_pass_reads_one_token_after_the_shortest_prompt():
    rows = rows_of(3, 700, [9, 30, 2, 17], 5)
    rows[7] = replace(rows[7], prompt_ids=[7, 8])
    plans = [planner(rank, ranks=5, in_step=True, budget=1).plan(rows) for rank in range(5)]
    idle = [micro for plan in plans for micro in plan if not micro.counts]
    assert idle and all(len(row.prompt_ids) == 2 and len(row.completion_ids) == 1 for m in idle for row in m.rows)
    assert not any(row.plan.teachers for micro in idle for row in micro.rows)
