"""Memory of one of several sharded processes, from its start to its first optimiser step (test_sharded_loading).

Prints JSON, in bytes: with the libraries loaded, the most while components are built, when they are, with gradients and
moments.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from measure_training import memory
from selfdistill.generation.loading import empty_model
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.components import build_components
from selfdistill.training.distributed import World
from selfdistill.training.optimiser import clear_gradients
from test_estimate_measured import BODY, make_spec, sdpo
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


def main() -> None:
    torch.set_num_threads(1)
    world = World.of(StageRuntime(processes=2, sharding="full"))
    with tempfile.TemporaryDirectory() as small:
        config = {key: value for key, value in BODY.items() if key != "model_type"} | {"hidden_size": 16, "vocab_size": 64}
        Qwen3ForCausalLM(Qwen3Config(**config)).save_pretrained(small)
        step(build(Path(small), world))
    gc.collect()
    found = {"libraries": memory("VmRSS")}
    Path("/proc/self/clear_refs").write_text("5")
    components = build(Path(sys.argv[1]), world)
    found |= {"start peak": memory("VmHWM"), "start": memory("VmRSS")}
    step(components)
    found["steady"] = memory("VmRSS")
    print(json.dumps(found))
    world.barrier()


if __name__ == "__main__":
    main()
