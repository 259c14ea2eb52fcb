"""Checks this project on one GPU in a few minutes; with torch and transformers alone losses and layers, with pydantic
all of training, with vLLM the engine.

    losses    divergence, policy losses and entropies of a large vocabulary and gradients, against plain ones in float64
    head      loss block in bfloat16: gradients of hidden states and head against float64
    step      one SDPO and one GRPO step of a random Qwen3 in bfloat16, sampled by the torch engine
    step_vllm the same, sampled by vLLM, which shares the GPU with training
    fsdp2     sharded over one process: the same hidden states and gradients as unsharded
    attention rows end to end by torch's variable-length kernel: hidden states, gradients and speed of padded rows
    compile   losses and layers compiled by torch.compile: gradients and speed of the plain ones
    vllm      sampling, sleep, wake, new weights, sampling again
    speed     the loss block, a layer of an 8B model, memory bandwidth, against what the hardware should give

    tools/gpu_check.sh [--device cpu --small] [--out FILE]

Prints a table and writes JSON. Exit code 1 where a check fails, 2 where no part could run. A part that needs what is
not installed says so; tools/gpu_check.sh --prepare brings pydantic along.
`predicted` counts operations and bytes over the GPU's published peaks, so a good measurement is 1.3 to 2 times that.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

#: Dense bfloat16 operations and bytes of memory traffic a second, as published.
PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "B200": (2250e12, 8e12), "A100": (312e12, 2.0e12)}


@dataclass(frozen=True)
class Case:
    """Sizes: those of a published 8B model, or small ones that a CPU computes in seconds."""

    device: torch.device
    vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    tokens: int
    layers: int
    top_k: int = 100

    @property
    def peaks(self) -> tuple[float, float] | None:
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        return next((peak for key, peak in PEAKS.items() if key in name), None)


@dataclass(frozen=True)
class Line:
    """One row of the table. `limit`: the most that `measured` may be, where that decides; `predicted` is not judged."""

    part: str
    name: str
    measured: float | None
    unit: str = ""
    predicted: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.limit is not None and not (self.measured is not None and self.measured <= self.limit)


def case_of(device: str, *, small: bool) -> Case:
    if small:
        return Case(torch.device(device), 1000, 64, 168, 4, 64, 2)
    return Case(torch.device(device), 151_936, 4096, 12_288, 32, 4096, 4)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative difference of two tensors, by their norms."""
    expected = expected.double().cpu()
    return float((found.double().cpu() - expected).norm() / expected.norm())


def speed(case: Case) -> Iterator[Line]:
    import gpu_check_losses as losses

    tokens, size = 512, 2**30 if case.device.type == "cuda" else 2**24
    peaks = case.peaks
    source = torch.ones(size, dtype=torch.uint8, device=case.device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), case)
    yield Line("speed", "memory traffic (copy)", 2 * size / seconds / 1e9, "GB/s", peaks and peaks[1] / 1e9)
    yield from layer_speed(case)
    if importlib.util.find_spec("pydantic") is None:
        yield Line("speed", f"SDPO loss of {tokens} tokens", None, note="not here: pydantic")
        return
    seconds = timed(losses.loss_block(case, tokens, case.device, torch.bfloat16), case)
    products = 4 * 2 * tokens * case.hidden * case.vocabulary
    # Some 20 passes over float32 logits; the head's float32 gradient is made, read and written; two 16-bit casts.
    moved = 4 * tokens * case.vocabulary * 20 + case.hidden * case.vocabulary * (4 + 8 + 2 * 6)
    predicted = peaks and 1e3 * (products / peaks[0] + moved / peaks[1])
    yield Line("speed", f"SDPO loss of {tokens} tokens", 1e3 * seconds, "ms", predicted)


def layer_speed(case: Case) -> Iterator[Line]:
    """Tokens a second of a layer, forward and backward."""
    model, run = layer_stack(case)
    seconds = timed(run, case) / case.layers
    weights = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    pairs = case.tokens**2 / 2 * 4 * case.hidden
    predicted = case.peaks and case.tokens / (3 * (2 * case.tokens * weights + pairs) / case.peaks[0])
    yield Line("speed", "one layer, forward and backward", case.tokens / seconds, "tokens/s", predicted)


def layer_stack(case: Case, attention: str = "sdpa") -> tuple[Any, Callable[[], torch.Tensor]]:
    """A stack of layers, and a call of a forward and backward pass as in training, which gives its hidden states.

    The call reads one sequence, or two end to end if this implementation of `attention` is not the library's.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=256, hidden_size=case.hidden, intermediate_size=case.intermediate, num_hidden_layers=case.layers,
        num_attention_heads=case.heads, num_key_value_heads=max(1, case.heads // 4), head_dim=case.hidden // case.heads,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(case.device).train()
    model.set_attn_implementation(attention)
    ids = torch.randint(256, (1, case.tokens), device=case.device)
    length = case.tokens if attention == "sdpa" else case.tokens // 2
    positions = torch.arange(case.tokens, device=case.device)[None] % length

    def run() -> torch.Tensor:
        with torch.autocast(case.device.type, dtype=torch.bfloat16):
            states = model.model(ids, position_ids=positions, use_cache=False).last_hidden_state
        states.float().sum().backward()
        return states.detach()

    return model, run


def timed(run: Callable[[], object], case: Case, *, warm: int = 2, repeats: int = 5) -> float:
    """Median seconds of a call, after some that warm up."""
    wait = torch.cuda.synchronize if case.device.type == "cuda" else int
    found = []
    for _ in range(warm + repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - start)
    return sorted(found[warm:])[repeats // 2]


def parts() -> dict[str, tuple[Callable[[Case], Iterator[Line]], tuple[str, ...]]]:
    """Each part, and the modules that it needs."""
    import gpu_check_attention
    import gpu_check_compile
    import gpu_check_losses as losses
    import gpu_check_training as training

    return {
        "losses": (losses.losses, ()),
        "head": (losses.head, ("pydantic",)),
        "fsdp2": (training.fsdp2, ("pydantic",)),
        "attention": (gpu_check_attention.attention, ("pydantic",)),
        "compile": (gpu_check_compile.compiled, ("pydantic",)),
        "step": (training.step, ("pydantic",)),
        "vllm": (training.vllm, ("pydantic", "vllm")),
        "step_vllm": (training.step_vllm, ("pydantic", "vllm")),
        "speed": (speed, ()),
    }


def lines_of(case: Case, wanted: list[str]) -> Iterator[Line]:
    for name, (function, needs) in parts().items():
        if name not in wanted:
            continue
        missing = [module for module in needs if importlib.util.find_spec(module) is None]
        if missing:
            yield Line(name, "", None, note=f"not here: {', '.join(missing)}")
            continue
        start = time.perf_counter()
        try:
            yield from function(case)
        except Exception as failure:
            traceback.print_exc()
            yield Line(name, "stopped", None, limit=0.0, note=f"{type(failure).__name__}: {failure}"[:200])
        yield Line(name, "seconds of this part", time.perf_counter() - start, "s")


def show(line: Line) -> str:
    number = "" if line.measured is None else f"{line.measured:,.4g}"
    predicted = "" if line.predicted is None else f"predicted {line.predicted:,.4g}"
    limit = "" if line.limit is None else f"at most {line.limit:g}: {'FAILED' if line.failed else 'ok'}"
    return f"{line.part:10}{line.name:42}{number:>12} {line.unit:16}{predicted or limit:28}{line.note}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--parts", nargs="+", default=list(parts()), help="some of the parts")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON (default: %(default)s)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: no GPU is visible. Use --device cpu --small to try the check itself.", file=sys.stderr)
        return 2
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    case = case_of(options.device, small=options.small)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{device}; torch {torch.__version__}")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SELFDISTILL_CHECK"] = folder
        for line in lines_of(case, options.parts):
            found.append(line)
            print(show(line), flush=True)
            record = {"device": device, "torch": torch.__version__, "lines": [asdict(line) for line in found]}
            options.out.write_text(json.dumps(record, indent=1))
    if all(line.note.startswith("not here: ") and not line.name for line in found):
        print(
            "error: nothing was checked. Install what is missing; for pydantic, run `tools/gpu_check.sh --prepare` "
            "where there is a network, and copy this folder here with what that puts into .gpu-check/.",
            file=sys.stderr,
        )
        return 2
    failed = sum(line.failed for line in found)
    print(f"{failed} failed; numbers in {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
