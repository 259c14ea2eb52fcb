"""Sampling processes beside the training processes: the same training as in turns, and no process left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Listener
from pathlib import Path

import pytest
from safetensors.torch import load_file

from family_study import METHODS, SAMPLING, Study
from selfdistill.artifacts.tables import read_rows
from selfdistill.generation import weights as weights_files
from selfdistill.generation.remote.client import RemoteSampler
from selfdistill.generation.remote.server import Server, TrainingEnded, accept
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.run.gpus import VISIBLE
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.training import OnPolicy, TrainingEvaluation
from selfdistill.stages.shared.training_sampler import _environment
from small_specs import small
from tiny import tiny_model

PROMPTS = [[5, 6, 7], [6], [7, 8], [5], [9, 9]]
SEEDS = [[10 * index, 10 * index + 1] for index in range(len(PROMPTS))]
SHORT = Sampling(max_tokens=8)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"), "qwen3", None)


def use(study, **settings):
    study.runtime.write_text(json.dumps({"defaults": {"settings": {"state_every_steps": 1, **settings}}}))


def results(artifact):
    rows = [row for path in sorted(artifact.payload.glob("rollouts/step-*.parquet")) for row in read_rows(path)]
    metrics = [json.loads(line) for line in artifact.metrics.read_text().splitlines()]
    times = ("seconds", "tokens_per_second", "peak_memory")
    return rows, [{k: v for k, v in line.items() if not k.startswith(times)} for line in metrics]


def weights(artifact):
    (path,) = artifact.payload.glob("checkpoints/*/model.safetensors")
    return load_file(path)


def servers(study):
    """Of this study, not of others on the machine: their settings name its model folder."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listed.splitlines() if "selfdistill.generation.remote.server" in line]
    return [int(line.split()[0]) for line in lines if str(study.root) in line]


def room_of(pid):
    """The folder of its address."""
    settings = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3]
    return Path(json.loads(settings)["address"]).parent


@pytest.mark.parametrize(
    "settings",
    [{"separate_samplers": 1}, {"separate_samplers": 2, "processes": 2, "sharding": "full"}],
    ids=["one beside one", "two beside two with shards"],
)
def test_training_beside_samplers_is_training_in_turns(study, settings):
    evaluation = small(TrainingEvaluation, every_steps=1, samples=2, sampling=SAMPLING)
    node = study.train(METHODS["sdpo"], steps=3, evaluation=evaluation)
    node.inputs["evaluation_prompts"] = study.prompts
    use(study)
    in_turns = study.run(node)
    rows, metrics = results(in_turns)
    expected = weights(in_turns)
    study.freeze(node).unseal()
    use(study, **settings)
    beside = study.run(node)
    found_rows, found_metrics = results(beside)
    assert [row["completion_ids"] for row in found_rows] == [row["completion_ids"] for row in rows]
    for ours, theirs in zip(found_metrics, metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for name, tensor in weights(beside).items():
        assert tensor.allclose(expected[name], atol=1e-4)
    assert not servers(study)


def run_in_child(study, node):
    """The stage in a process of its own."""
    child = multiprocessing.get_context("fork").Process(target=study.run, args=(node,))
    child.start()
    return child


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_samplers_end_with_a_killed_training_and_a_resumed_one_ends_the_same(study):
    node = study.train(METHODS["grpo"], steps=30)
    use(study)
    expected = results(study.run(node))
    artifact = study.freeze(node)
    artifact.unseal()
    use(study, separate_samplers=1)
    child = run_in_child(study, node)
    wait_for(lambda: any(artifact.state.glob("step-*")))
    (pid,) = servers(study)
    room = room_of(pid)
    assert room.is_dir()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    wait_for(lambda: not servers(study), 30)
    assert not room.exists()
    assert results(study.run(node)) == expected


def test_a_training_ends_with_its_samplers_and_says_where_to_look(study):
    node = study.train(METHODS["grpo"], steps=30, seed=1)
    use(study, separate_samplers=1)
    artifact = study.freeze(node)
    child = run_in_child(study, node)
    wait_for(lambda: any(artifact.state.glob("step-*")))
    for pid in servers(study):
        os.kill(pid, signal.SIGKILL)
    child.join(60)
    assert child.exitcode == 1
    text = (artifact.folder / "log.txt").read_text()
    assert "a sampling process has exited; see the end of" in text and "sampling-0.log" in text
    assert not artifact.is_sealed


def test_what_a_sampler_refuses_is_refused_by_the_training(study):
    node = study.train(METHODS["grpo"], steps=2)
    too_long = small(OnPolicy, group_size=4, sampling=Sampling(max_tokens=10**6))
    node = replace(node, spec=node.spec.model_copy(update={"on_policy": too_long}))
    use(study, separate_samplers=1)
    artifact = study.run(node, expect=2)
    assert "exceed the model's" in (artifact.folder / "log.txt").read_text()
    assert not servers(study)


def test_samplers_get_the_gpus_after_those_of_the_training(monkeypatch):
    monkeypatch.setenv(VISIBLE, "a,b,c,d,e,f,g")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    runtime = StageRuntime(device="cuda", tensor_parallel=2, separate_samplers=2)
    environments = [_environment(runtime, 2, index) for index in range(2)]
    assert [found[VISIBLE] for found in environments] == ["c,d", "e,f"]
    assert not {"RANK", "MASTER_PORT"} & {name for found in environments for name in found}
    with pytest.raises(UserError, match="more GPUs"):
        _environment(runtime, 2, 2)


@pytest.fixture
def lines(tmp_path):
    """Two training processes' lines to two samplers, which run in threads."""

    def serve(address, model):
        with Listener(str(address), family="AF_UNIX") as listener:
            clients = accept(listener, 2)
            try:
                Server(TorchSampler(model, [2], shares_model=False), clients).run()
            except TrainingEnded:
                ended.append(address)

    ended: list = []
    addresses = [tmp_path / str(index) for index in range(2)]
    threads = [threading.Thread(target=serve, args=(address, tiny_model(12)), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    samplers = [RemoteSampler(addresses, rank, log=tmp_path / "log") for rank in range(2)]
    yield samplers
    for sampler in samplers:
        sampler.close()
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == addresses


def together(samplers, call):
    """The call from every training process, as they make it: at the same time."""
    found = {}
    threads = [threading.Thread(target=lambda s=s: found.update({s.local_rank: call(s)})) for s in samplers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[sampler.local_rank] for sampler in samplers]


def test_answers_are_those_of_one_sampler_whoever_asks(lines):
    expected = TorchSampler(tiny_model(12), [2]).generate(PROMPTS, SEEDS, SHORT)
    seen = []

    def ask(sampler):
        own = PROMPTS[sampler.local_rank :: 2], SEEDS[sampler.local_rank :: 2]
        return sampler.generate(*own, SHORT, lambda count, tokens: seen.append((count, tokens)))

    first, second = together(lines, ask)
    for ours, theirs in zip([*first, *second], [*expected[::2], *expected[1::2]], strict=True):
        assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
        assert [c.logprobs for c in ours] == [pytest.approx(c.logprobs, abs=1e-5) for c in theirs]
    assert sum(count for count, _ in seen) == 2 * len(PROMPTS)
    assert sum(tokens for _, tokens in seen) == sum(len(c.token_ids) for group in expected for c in group)


def test_weights_of_the_first_reach_every_sampler(lines):
    other = tiny_model(12)
    other.model.embed_tokens.weight.data.mul_(-1)
    expected = TorchSampler(other, [2]).generate(PROMPTS, SEEDS, SHORT)
    together(lines, lambda sampler: sampler.update_weights(lambda: iter(other.state_dict().items())))
    first, _ = together(lines, lambda sampler: sampler.generate(PROMPTS, SEEDS, SHORT))
    assert [[c.token_ids for c in group] for group in first] == [[c.token_ids for c in group] for group in expected]
    before = TorchSampler(tiny_model(12), [2]).generate(PROMPTS, SEEDS, SHORT)
    assert [[c.token_ids for c in group] for group in before] != [[c.token_ids for c in group] for group in first]


def test_a_call_that_is_given_up_leaves_nothing_to_the_next(lines):
    def give_up_and_ask(sampler):
        stream = sampler.stream(PROMPTS, SEEDS, SHORT)
        next(stream)
        stream.close()
        return sampler.generate(PROMPTS[:2], SEEDS[:2], SHORT)

    expected = TorchSampler(tiny_model(12), [2]).generate(PROMPTS[:2], SEEDS[:2], SHORT)
    for found in together(lines, give_up_and_ask):
        assert [[c.token_ids for c in group] for group in found] == [[c.token_ids for c in group] for group in expected]


def test_finished_prompts_are_not_drawn_again(lines):
    done = {0, 3}
    first, _ = together(lines, lambda sampler: dict(sampler.stream(PROMPTS, SEEDS, SHORT, done=done)))
    assert sorted(first) == [1, 2, 4]


def test_another_process_that_hangs_up_is_not_the_end_of_the_training(tmp_path):
    ends = [Pipe() for _ in range(2)]
    server = Server(TorchSampler(tiny_model(12), [2], shares_model=False), [theirs for _, theirs in ends])
    ends[0][0].send(("sample", [], [], SHORT))
    ends[1][0].close()
    with pytest.raises(RuntimeError, match="local rank 1 of the training has closed its connection"):
        server.run()


@pytest.mark.parametrize("tied", [True, False])
def test_weights_go_through_files_of_bounded_size(tmp_path, monkeypatch, tied):
    monkeypatch.setattr(weights_files, "_FILE_BYTES", 1)
    state = tiny_model(12, tied=tied).state_dict()
    weights_files.write_weights(iter(state.items()), tmp_path)
    assert len(list(tmp_path.iterdir())) == len(state)
    assert weights_files.holds_head(tmp_path)
    found = dict(weights_files.read_weights(tmp_path))
    assert found.keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in found.items())


def test_a_tied_head_that_a_model_folder_leaves_out_is_put_in(tmp_path):
    model = tiny_model(12)
    model.save_pretrained(tmp_path)
    assert not weights_files.holds_head(tmp_path)
    found = dict(weights_files.read_weights(tmp_path))
    assert found[weights_files.HEAD].equal(model.lm_head.weight) and found.keys() == model.state_dict().keys()


def test_only_local_rank_0_sends_weights(lines, tmp_path):
    with pytest.raises(RuntimeError, match="only local rank 0"):
        lines[1].load_weights(tmp_path)


def test_a_sampler_that_never_starts_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="did not start; see the end of .*words"):
        RemoteSampler([tmp_path / "0"], 0, log=tmp_path / "words", has_exited=lambda: True)
