"""A study in small of one model family: its model, a few problems, and the real stages, run as the workflow runs them.

The model has random weights and then learns, in a second, to think a word and to box 1 or 2: so that rewards differ
within a group and there are solutions to show, which random weights alone would give once in a lifetime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from chat_tokenizers import tokenizer
from model_families import family_model
from selfdistill.artifacts.store import Artifact, freeze
from selfdistill.artifacts.tables import PROBLEMS, write_rows
from selfdistill.plan.graph import Node
from selfdistill.prompts import chat, encode_chat
from selfdistill.run import launch
from selfdistill.schema.common import AssetPin, Optimiser, RepromptTemplate, Sampling
from selfdistill.schema.methods import Grpo, Sdpo
from selfdistill.schema.sources import FileSource
from selfdistill.schema.stages import (
    ContextsSpec,
    DatasetSpec,
    EvaluateSpec,
    ModelSpec,
    OnPolicy,
    PromptsSpec,
    RolloutsSpec,
    TrainSpec,
)
from small_specs import small

#: Family and enable_thinking: None where the template knows no such switch.
CASES = [("qwen3", True), ("qwen3", False), ("deepseek_r1_distill_qwen", None), ("olmo3_instruct", None)]
QUESTION = "{question}\nBox the answer."
PROBLEM_TEXTS = ["What is 1?", "What is the answer to {x}?", "Wait, which?", "What is 2, the solution?", "1 or 2?"]
REPROMPT = RepromptTemplate(
    frame="{prompt}{solution}\n\nNow solve.", solution="\nCorrect solution:\n{successful_previous_attempt}"
)
SAMPLING = Sampling(max_tokens=40)
PIN = AssetPin(sha256="0" * 64)


def completion_text(name: str, thinking: bool | None, answer: int) -> str:
    """What the model learns to say after its template's generation header."""
    if name == "deepseek_r1_distill_qwen":  # Its header opens the thinking.
        return f"Wait\n</think>\n\n\\boxed{{{answer}}}"
    if name == "qwen3" and thinking:
        return f"<think>\nWait\n</think>\n\n\\boxed{{{answer}}}"
    return f"Wait \\boxed{{{answer}}}"


def taught_model(name: str, thinking: bool | None, steps: int = 60) -> Any:
    """A random model after a few steps of learning."""
    model, words = family_model(name), tokenizer(name)
    rows, targets = [], []
    for text in PROBLEM_TEXTS:
        prompt = encode_chat(words, chat(QUESTION.replace("{question}", text), None), thinking)
        for answer in (1, 2):
            ids = words.encode(completion_text(name, thinking, answer), add_special_tokens=False) + [words.eos_token_id]
            rows.append(prompt + ids)
            targets.append([-100] * len(prompt) + ids)
    width = max(map(len, rows))
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in targets])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(input_ids=inputs, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


class Study:
    """Artifacts of one family in a project directory; `run` does a stage as the workflow does."""

    def __init__(self, root: Path, name: str, thinking: bool | None, engine: str = "torch") -> None:
        self.root, self.name, self.thinking, self.engine = root, name, thinking, engine
        self.runtime = root / "runtime.yaml"
        self.runtime.write_text("defaults: {settings: {threads: 1}}\n")
        self.model = Node(small(ModelSpec, pin=PIN), {})
        artifact = self.freeze(self.model)
        taught_model(name, thinking).save_pretrained(artifact.payload / "model")
        tokenizer(name).save_pretrained(artifact.payload / "model")
        artifact.seal({})
        self.problems = Node(
            small(DatasetSpec, source=FileSource(pin=PIN, fields={"question": "q", "answer": "a"})), {}
        )
        artifact = self.freeze(self.problems)
        write_rows(artifact.payload / "problems.parquet", map(self.problem, range(len(PROBLEM_TEXTS))), PROBLEMS)
        artifact.seal({})
        spec = small(PromptsSpec, question_template=QUESTION, thinking=thinking, max_prompt_tokens=400)
        self.prompts = Node(spec, {"problems": self.problems, "model": self.model})
        self.run(self.prompts)

    @staticmethod
    def problem(row: int) -> dict[str, Any]:
        return {
            "row_id": row, "problem_id": f"p{row}", "question": PROBLEM_TEXTS[row], "answer": str(1 + row % 2),
            "family": "all", "solution": None, "source": "test",
        }  # fmt: skip

    def freeze(self, node: Node) -> Artifact:
        folder = node.folder(self.root / "results/artifacts")
        freeze(folder, node.frozen_spec)
        return Artifact.open(folder)

    def run(self, node: Node, *options: str, expect: int = 0, log: str | None = None) -> Artifact:
        artifact = self.freeze(node)
        path = self.root / "logs" / f"{log or node.stage}.log"
        arguments = [node.stage, str(artifact.manifest_path), "--log", str(path), "--runtime", str(self.runtime)]
        assert launch.run([*arguments, *options]) == expect, path.read_text()
        return Artifact.open(artifact.folder)

    def rollouts(self, *, samples: int = 4, contexts: Node | None = None, seed: int = 0) -> Node:
        guided = {} if contexts is None else {
            "reprompt": REPROMPT, "max_reprompt_tokens": 600, "thinking": self.thinking,
        }  # fmt: skip
        spec = small(RolloutsSpec, samples=samples, sampling=SAMPLING, engine=self.engine, seed=seed, **guided)
        inputs = {"model": self.model, "prompts": self.prompts}
        return Node(spec, inputs if contexts is None else inputs | {"contexts": contexts})

    def contexts(self, kind: str, rollouts: Node) -> Node:
        return Node(small(ContextsSpec, kind=kind), {"rollouts": rollouts})

    def train(self, method: Any, *, steps: int = 2, seed: int = 0, **changes: Any) -> Node:
        spec = small(
            TrainSpec,
            method=method, seed=seed, steps=steps, prompts_per_step=4, prompts_per_update=2, thinking=self.thinking,
            optimiser=Optimiser(learning_rate=1e-3, warmup_steps=0), checkpoint_every=steps,
            on_policy=small(OnPolicy, group_size=4, sampling=SAMPLING, engine=self.engine), **changes,
        )  # fmt: skip
        return Node(spec, {"model": self.model, "prompts": self.prompts})

    def evaluate(self, model: Node, steps: list[int], samples: int = 2, **changes: Any) -> Node:
        spec = small(EvaluateSpec, steps=steps, samples=samples, sampling=SAMPLING, engine=self.engine, **changes)
        return Node(spec, {"model": model, "prompts": self.prompts})


METHODS = {"grpo": Grpo(), "sdpo": Sdpo(top_k=20, reprompt=REPROMPT, max_reprompt_tokens=600)}
