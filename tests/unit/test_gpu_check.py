"""tools/gpu_check.sh: on a GPU where there is one (make test-gpu); its logic on a CPU, with torch and few packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "benchmarks" / "gpu_check.py"
#: What a machine with torch and transformers alone does not have.
ABSENT = ("vllm", "snakemake", "accelerate", "pyarrow", "pandas", "mlflow", "click", "datasets", "math_verify")


def check(out: Path, *arguments: str, absent: tuple[str, ...] = ()) -> tuple[int, dict]:
    """Run the check in a process of its own where some packages cannot be imported; exit code and JSON."""
    code = (
        "import runpy, sys, importlib.abc\n"
        f"absent = {absent!r}\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in absent:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name in absent else real(name, package)\n"
        f"sys.argv = ['gpu_check.py', '--out', {str(out)!r}, *{arguments!r}]\n"
        f"runpy.run_path({str(CHECK)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    print(done.stdout, done.stderr[-3000:])
    return done.returncode, json.loads(out.read_text())


@pytest.mark.slow
def test_the_check_itself_runs_on_a_cpu_with_torch_and_transformers_alone(tmp_path):
    code, found = check(tmp_path / "out.json", "--device", "cpu", "--small", absent=ABSENT)
    assert code == 0
    lines = {(line["part"], line["name"]): line for line in found["lines"]}
    assert {part for part, _ in lines} == {
        "losses",
        "head",
        "fsdp2",
        "attention",
        "compile",
        "step",
        "vllm",
        "step_vllm",
        "speed",
    }
    assert lines["vllm", ""]["note"] == lines["step_vllm", ""]["note"] == "not here: vllm"
    assert lines["attention", "torch's variable-length kernel"]["note"].startswith("not here: ")
    assert lines["compile", "one layer, forward and backward, compiled"]["measured"] > 0
    assert lines["step", "sdpo: gradient norm"]["measured"] > 0
    assert lines["step", "grpo: sampler gap"]["measured"] < 0.1
    assert all(line["measured"] is not None for line in found["lines"] if line["limit"] is not None)


def test_losses_and_layers_are_checked_without_pydantic(tmp_path):
    parts = ("--parts", "losses", "speed", "head", "step_vllm")
    code, found = check(tmp_path / "out.json", "--device", "cpu", "--small", *parts, absent=(*ABSENT, "pydantic"))
    assert code == 0
    lines = {(line["part"], line["name"]): line for line in found["lines"]}
    assert 0 <= lines["losses", "divergence, top k and tail: gradient"]["measured"] < 1e-4
    assert lines["speed", "one layer, forward and backward"]["measured"] > 0
    assert lines["speed", "SDPO loss of 512 tokens"]["note"] == lines["head", ""]["note"] == "not here: pydantic"
    assert lines["step_vllm", ""]["note"] == "not here: pydantic, vllm"


def test_a_check_of_which_nothing_can_run_is_an_error_that_says_what_to_install(tmp_path, capfd):
    only = ("--device", "cpu", "--small", "--parts", "head", "step")
    code, found = check(tmp_path / "out.json", *only, absent=(*ABSENT, "pydantic"))
    assert code == 2
    assert all(line["note"].startswith("not here: pydantic") for line in found["lines"])
    assert "tools/gpu_check.sh --prepare" in capfd.readouterr().out


def test_a_wrong_gradient_fails_the_check(tmp_path):
    """The check is run with a backward pass that forgets the normaliser."""
    source = CHECK.read_text()
    broken = tmp_path / "gpu_check.py"
    spoil = (
        "from selfdistill.losses import normalise\n"
        "def wrong(ctx, g):\n"
        "    logits, _, index = ctx.saved_tensors\n"
        "    return torch.zeros_like(logits).scatter_add_(-1, index, g), None\n"
        "normalise._ChosenLogprobs.backward = staticmethod(wrong)\n"
    )
    path = f"sys.path[:0] = [{str(CHECK.parent)!r}, {str(ROOT / 'src')!r}]\n"
    source = source.replace("#: Dense bfloat16", path + spoil + "#: Dense bfloat16", 1)
    broken.write_text(source)
    command = [sys.executable, str(broken), "--device", "cpu", "--small", "--parts", "losses", "--out", "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "divergence, top k and tail: gradient" in done.stdout and "FAILED" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")
def test_everything_on_this_gpu(tmp_path):
    code, found = check(tmp_path / "gpu.json")
    assert code == 0
    assert found["device"] != "cpu"
