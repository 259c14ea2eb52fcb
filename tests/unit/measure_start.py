"""Memory of one of several sharded processes, from its start to its first optimiser step (test_sharded_loading).

Prints JSON, in bytes: with the libraries loaded; the most while the weights of policy and teacher are read; when they
are; the most while components are built (a forward pass belongs to that); with gradients and moments; the most while
a second resume state is saved; and with what its copy keeps.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from measure_training import memory
from selfdistill.generation.loading import empty_model
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.components import build_components
from selfdistill.training.distributed import World
from selfdistill.training.network import Network
from selfdistill.training.optimiser import clear_gradients
from selfdistill.training.state import Progress
from test_estimate_measured import make_spec, sdpo
from tiny import tiny_tokenizer


def build(folder: Path, world: World):
    spec = make_spec(sdpo("fixed"), 48)
    runtime = StageRuntime(processes=2, sharding="full")
    components = build_components(empty_model(folder), tiny_tokenizer(), spec, runtime, world, folder)
    gc.collect()
    return components


def step(components) -> None:
    clear_gradients(components.model)
    components.adamw.step()


def held() -> int:
    """Memory of the process, without what the C library keeps of freed memory."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return memory("VmRSS")


def main() -> None:
    torch.set_num_threads(1)
    world = World.of(StageRuntime(processes=2, sharding="full"))
    small, large = map(Path, sys.argv[1:])
    step(build(small, world))
    gc.collect()
    found = {"libraries": held()}
    Path("/proc/self/clear_refs").write_text("5")
    check_head = Network.check_head

    def noting(network: Network) -> None:
        found["loading peak"] = memory("VmHWM")
        found["loaded"] = held()
        check_head(network)

    Network.check_head = noting
    components = build(large, world)
    found["start peak"] = memory("VmHWM")
    step(components)
    found["steady"] = held()
    state = large.parent / "state"
    for number in (1, 2):
        components.save(state, Progress(step=number))
        components.finish_saving()
        if number == 1:
            held()
            Path("/proc/self/clear_refs").write_text("5")
    found |= {"saving peak": memory("VmHWM"), "with state": held()}
    print(json.dumps(found))
    world.barrier()


if __name__ == "__main__":
    main()
