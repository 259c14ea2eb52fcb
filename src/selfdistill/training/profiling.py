"""A trace of one training step, for chrome://tracing or perfetto.dev."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from selfdistill.training.distributed import World


@contextmanager
def profiled(folder: Path, step: int, wanted: int | None, world: World) -> Iterator[None]:
    """Write `folder/step-N.json.gz` if this is the wanted step, on the main rank only."""
    if step != wanted or not world.is_main:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"step-{step}.json.gz"))
