"""Two training steps of a random network in a process of its own, and the most memory it took (test_estimate_measured).

Prints JSON: bytes above what the process held when all libraries were loaded and had done a first tiny step.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.rollouts import Prompt
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.stages.shared.kept_groups import GroupFiles
from selfdistill.training.data import SftExample, TrainingFolder
from selfdistill.training.distributed import World
from selfdistill.training.loop import train
from tiny import tiny_tokenizer
from training_session import Verdict, ranks


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def every_other(texts, prompts, stop_reasons):
    """Half of every group is right, so that every row has an advantage and a demonstration."""
    return [Verdict("correct", 1.0) if index % 2 else Verdict("wrong", 0.0) for index in range(len(texts))]


def prompts_of(tokenizer, count: int, length: int) -> list[Prompt]:
    """Prompts of exactly `length` tokens."""
    prompts = []
    for row in range(count):
        question = " ".join(["so"] * (length - 5))
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert len(ids) == length
        prompts.append(Prompt(row, f"p{row}", "family", question, str(row % 2), messages, ids))
    return prompts


def train_network(
    place: Path, spec: TrainSpec, runtime: StageRuntime, config: Qwen3Config, prompt_tokens: int, completion_tokens: int
) -> None:
    tokenizer = tiny_tokenizer()
    # Every id is a word, so that demonstrations are as long as the completions they come from.
    tokenizer.add_tokens([f"w{index}" for index in range(len(tokenizer), config.vocab_size)])
    model = Qwen3ForCausalLM(config)
    prompts = prompts_of(tokenizer, spec.prompts_per_step, prompt_tokens)
    examples = [SftExample(p.row_id, p.problem_id, p.prompt_ids, [7] * completion_tokens) for p in prompts]
    train(
        model,
        tokenizer,
        spec,
        prompts=prompts,
        examples=None if spec.on_policy else examples,
        # An end of sequence that is never drawn: every completion is of full length.
        sampler=TorchSampler(model, [config.vocab_size], max_batch_tokens=runtime.sampler_batch_tokens),
        grade=every_other,
        folder=TrainingFolder(place / "checkpoints", place / "state", place / "metrics.jsonl", place),
        runtime=runtime,
        world=World.of(runtime),
        kept=GroupFiles(place / "state" / "rollouts", *ranks()),
        record_rollouts=lambda step, rows: None,
        stop_requested=lambda: False,
        report=lambda line: None,
    )


def main() -> None:
    case = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec, runtime = TrainSpec(**case["spec"]), StageRuntime(**case["runtime"])
    small = Qwen3Config(**case["config"] | {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 64})
    lengths = case["prompt_tokens"], case["completion_tokens"]
    train_network(Path(case["folder"], "small"), spec, runtime, small, *lengths)
    gc.collect()
    baseline = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    train_network(Path(case["folder"], "measured"), spec, runtime, Qwen3Config(**case["config"]), *lengths)
    print(json.dumps({"peak": memory("VmHWM") - baseline}))


if __name__ == "__main__":
    main()
