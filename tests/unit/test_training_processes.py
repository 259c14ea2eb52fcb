"""Several gloo processes, with copied or sharded weights, train what one process trains."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from selfdistill.schema.common import Lora
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Grpo, Teacher
from selfdistill.schema.runtime import StageRuntime
from training_session import GRPO, SDPO, SFT, Session, make_spec, run_in_processes, without_times

METHODS = {
    "grpo": GRPO,
    "grpo_kl": Grpo(kl_coefficient=0.1),
    "sdpo_ema": SDPO,
    "sdpo_fixed": SDPO.model_copy(update={"teacher": Teacher()}),
    "sdpo_snapshot": SDPO.model_copy(update={"teacher": Teacher(kind="snapshot", every=2)}),
    "sdpo_trust_region": SDPO.model_copy(update={"teacher": Teacher(kind="trust_region", rate=0.3)}),
    "sft": SFT,
}


def assert_same_training(one: Session, other: Session) -> None:
    """Same rollouts, same metrics; weights equal up to the order in which gradients are added."""
    for ours, theirs in zip(without_times(one.metrics()), without_times(other.metrics()), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    name = f"checkpoints/step-{one.spec.steps}/model.safetensors"
    ours, theirs = load_file(one.folder / name), load_file(other.folder / name)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], atol=1e-4, rtol=1e-3)


def run_alone(folder, spec, **options) -> Session:
    session = Session(folder, spec, **options)
    session.run()
    return session


def run_together(folder, spec, **options) -> Session:
    sharding = options.pop("sharding", "none")
    session = Session(folder, spec, StageRuntime(state_every_steps=1, processes=2, sharding=sharding), **options)
    assert run_in_processes(session) == [0, 0]
    return session


@pytest.mark.parametrize("method", ["grpo", "sdpo_ema", "sft"])
def test_two_processes_train_what_one_does(tmp_path, method):
    spec = make_spec(METHODS[method], steps=3, checkpoint_every=3)
    assert_same_training(run_alone(tmp_path / "one", spec), run_together(tmp_path / "two", spec))


@pytest.mark.parametrize(("method", "tied"), [*((name, True) for name in METHODS), ("sdpo_ema", False)])
def test_two_processes_with_sharded_weights_train_what_one_does(tmp_path, method, tied):
    spec = make_spec(METHODS[method], steps=3, checkpoint_every=3)
    one = run_alone(tmp_path / "one", spec, tied=tied)
    assert_same_training(one, run_together(tmp_path / "two", spec, tied=tied, sharding="full"))


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_adapters_train_alike_in_one_process_and_two(tmp_path, sharding):
    spec = make_spec(SDPO, steps=3, checkpoint_every=3, lora=Lora(rank=4))
    assert_same_training(run_alone(tmp_path / "one", spec), run_together(tmp_path / "two", spec, sharding=sharding))


def test_sharded_processes_with_unequal_work_do_not_wait_for_each_other(tmp_path):
    """Three rows with a gradient over two processes, one micro-batch a row: one process has twice the work."""
    spec = make_spec(SFT, steps=2, prompts_per_step=3, prompts_per_update=3, checkpoint_every=2)
    one = run_alone(tmp_path / "one", spec)
    runtime = StageRuntime(processes=2, sharding="full", micro_batch_tokens=1)
    two = Session(tmp_path / "two", spec, runtime)
    assert run_in_processes(two) == [0, 0]
    assert_same_training(one, two)


def test_a_sharded_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    spec = make_spec(SDPO, steps=4, checkpoint_every=4)
    whole = run_together(tmp_path / "whole", spec, sharding="full")
    stopped = Session(tmp_path / "stopped", spec, StageRuntime(processes=2, sharding="full", state_every_steps=1))
    stopped.stop_requested = lambda: (tmp_path / "stopped/state/step-2").is_dir()
    assert run_in_processes(stopped) == [1, 1]
    assert not (tmp_path / "stopped/checkpoints/step-4").exists()
    stopped.stop_requested = lambda: False
    assert run_in_processes(stopped) == [0, 0]
    assert stopped.weights() == whole.weights()
    assert without_times(stopped.metrics()) == without_times(whole.metrics())


def test_a_sharded_state_is_not_read_by_an_unsharded_run(tmp_path):
    spec = make_spec(SFT, steps=3, checkpoint_every=3)
    stopped = Session(tmp_path, spec, StageRuntime(processes=2, sharding="full", state_every_steps=1))
    stopped.stop_requested = lambda: (tmp_path / "state/step-1").is_dir()
    assert run_in_processes(stopped) == [1, 1]
    with pytest.raises(UserError, match="sharding: full"):
        Session(tmp_path, spec).run()


def test_unsharded_processes_on_a_cpu_go_on_from_their_state(tmp_path):
    spec = make_spec(GRPO, steps=4, checkpoint_every=4)
    whole = run_together(tmp_path / "whole", spec)
    stopped = Session(tmp_path / "stopped", spec, StageRuntime(processes=2, state_every_steps=1))
    stopped.stop_requested = lambda: (tmp_path / "stopped/state/step-2").is_dir()
    assert run_in_processes(stopped) == [1, 1]
    stopped.stop_requested = lambda: False
    assert run_in_processes(stopped) == [0, 0]
    assert stopped.weights() == whole.weights()
