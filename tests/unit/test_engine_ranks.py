"""Training processes that run one engine together: four processes in two engines, each with a stand-in's part."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from selfdistill.generation.engine_ranks import EngineRanks
from selfdistill.generation.vllm_sampler import VllmSampler
from selfdistill.schema.common import Sampling
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.distributed import World
from selfdistill.training.sampling import portions
from test_vllm_sampler import StandIn, vllm  # noqa: F401 (a fixture)
from training_session import run_in_processes

PROMPTS = 12
SEEDS = [[10 * place, 10 * place + 1] for place in range(PROMPTS)]


def sample(folder, on_progress):
    """Sample all prompts, as a training step does; writes what this rank's engine was asked for, and what it gave."""
    world = World.of(StageRuntime(processes=4))
    sampler = VllmSampler(StandIn(), [2], ranks=EngineRanks(2))
    sampler.engine.vllm_config.scheduler_config.max_num_seqs = 3
    found, error = {}, ""
    try:
        for place, completions in sampler.stream_portions(
            portions(sampler, PROMPTS, world), [[5]] * PROMPTS, SEEDS, Sampling(max_tokens=5), done={4},
            on_progress=lambda finished, _: on_progress(world.rank, finished),
        ):  # fmt: skip
            found[place] = [completion.token_ids for completion in completions]
    except InterruptedError as stop:
        error = str(stop)
    requests = [call[2].seed for call in sampler.engine.calls if call[0] == "add_request"]
    aborted = sum(len(call) - 1 for call in sampler.engine.calls if call[0] == "abort_request")
    result = {"requests": requests, "found": found, "aborted": aborted, "error": error}
    (folder / f"{world.rank}.json").write_text(json.dumps(result))
    world.barrier()


def run(folder, on_progress=lambda rank, finished: None):
    run_ranks = SimpleNamespace(run=lambda: sample(folder, on_progress))
    assert run_in_processes(run_ranks, processes=4) == [0] * 4
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def test_both_ranks_of_an_engine_do_the_same_and_the_first_hands_it_on(vllm, tmp_path):  # noqa: F811
    ranks = run(tmp_path)
    for leader, follower in ((0, 1), (2, 3)):
        assert ranks[leader]["requests"] == ranks[follower]["requests"] != []
        assert ranks[follower]["found"] == {}
    together = ranks[0]["found"] | ranks[2]["found"]
    assert len(ranks[0]["found"]) + len(ranks[2]["found"]) == len(together) == PROMPTS - 1
    assert together["3"] == [[30, 2], [31, 9]]
    assert "4" not in together


@pytest.mark.parametrize("stopped", [2, 3])
def test_if_one_rank_stops_the_others_of_its_engine_do_too(vllm, tmp_path, stopped):  # noqa: F811
    def stop(rank, finished):
        if rank == stopped:
            raise InterruptedError("stop requested")

    ranks = run(tmp_path, stop)
    assert [rank["error"] for rank in ranks] == ["stop requested" if rank == stopped else "" for rank in range(4)]
    assert ranks[2]["aborted"] == ranks[3]["aborted"] > 0
    assert len(ranks[0]["found"]) >= PROMPTS - 1 - 2


def test_what_the_leader_chooses_reaches_its_engine_alone(tmp_path):
    def work():
        World.of(StageRuntime(processes=4))
        ranks, rank = EngineRanks(2), int(os.environ["RANK"])
        chosen = [ranks.decide(lambda: [rank, "a"]), ranks.any(rank == 3), ranks.any(rank == 9)]
        assert chosen == [[rank - rank % 2, "a"], rank > 1, False]
        assert ranks.is_leader == (rank % 2 == 0)

    assert run_in_processes(SimpleNamespace(run=work), processes=4) == [0] * 4


def test_a_process_alone_decides_alone():
    ranks = EngineRanks()
    assert (ranks.is_leader, ranks.decide(lambda: 7), ranks.any(True), ranks.any(False)) == (True, 7, True, False)
