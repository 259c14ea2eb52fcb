"""A small but whole training run: every input of train(), and what it leaves on disk."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch.distributed import TCPStore

from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.rollouts import Prompt
from selfdistill.schema.common import Optimiser, RepromptTemplate, Sampling
from selfdistill.schema.methods import Grpo, Sdpo, Sft, Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.schema.training import OnPolicy
from selfdistill.stages.shared.kept_groups import GroupFiles
from selfdistill.training.data import SftExample, TrainingFolder
from selfdistill.training.distributed import World
from selfdistill.training.evaluation import Evaluation
from selfdistill.training.loop import train
from small_specs import small
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
REPROMPT = RepromptTemplate(frame="{prompt}{solution} solve", solution=" solution {successful_previous_attempt}")
GRPO = Grpo()
SDPO = Sdpo(top_k=10, reprompt=REPROMPT, teacher=Teacher(kind="ema", rate=0.2))
SFT = Sft(arm="guided")


@dataclass
class Verdict:
    outcome: str
    reward: float
    extracted: str = ""
    feedback: str = ""


def grade(texts, prompts, stop_reasons):
    """A completion is right if its length in words has the parity of the gold answer: half are, more can be."""
    assert set(stop_reasons) <= {"eos", "length"}
    right = [len(text.split()) % 2 == int(prompt.answer) % 2 for text, prompt in zip(texts, prompts, strict=True)]
    return [Verdict("correct" if ok else "wrong", float(ok)) for ok in right]


def make_prompts(count: int = 6) -> list[Prompt]:
    prompts = []
    for row in range(count):
        question = f"which {row} " + "so " * (row % 3)
        messages = [{"role": "user", "content": question}]
        ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompts.append(Prompt(row, f"p{row}", "family", question, str(row % 2), messages, ids))
    return prompts


def make_examples(count: int = 10) -> list[SftExample]:
    return [
        SftExample(p.row_id, p.problem_id, p.prompt_ids, [*([7 + p.row_id % 5] * (1 + p.row_id % 4)), EOS])
        for p in make_prompts(count)
    ]


def make_spec(method, **changes) -> TrainSpec:
    settings = {
        "method": method,
        "seed": 0,
        "steps": 4,
        "prompts_per_step": 4,
        "prompts_per_update": 2,
        "optimiser": Optimiser(learning_rate=3e-3, warmup_steps=1),
        "on_policy": None
        if isinstance(method, Sft)
        else small(OnPolicy, group_size=4, sampling=Sampling(max_tokens=12)),
        "checkpoint_every": 2,
    }
    return small(TrainSpec, **{**settings, **changes})


@dataclass
class Session:
    """One call of train() with everything it touches."""

    folder: Path
    spec: TrainSpec
    runtime: StageRuntime = StageRuntime(state_every_steps=1)
    tied: bool = True
    grade: object = staticmethod(grade)
    stop_requested: object = staticmethod(lambda: False)
    on_report: object = staticmethod(lambda line: None)
    reports: list[dict] = field(default_factory=list)
    rollouts: dict[int, list[dict]] = field(default_factory=dict)

    def run(self, **changes):
        model = tiny_model(len(TOKENIZER), tied=self.tied)
        shares_model = self.runtime.sharding == "none"
        sampler = TorchSampler(model if shares_model else copy.deepcopy(model), [EOS], shares_model=shares_model)
        evaluation = None
        if self.spec.evaluation is not None:
            prompts = make_prompts(9)[6 : 6 + self.spec.evaluation.limit]
            evaluation = Evaluation(self.spec.evaluation, prompts, sampler, self.grade, TOKENIZER)
        arguments = {
            "prompts": make_prompts(),
            "examples": make_examples() if isinstance(self.spec.method, Sft) else None,
            "sampler": sampler,
            "evaluation": evaluation,
            "grade": self.grade,
            "folder": TrainingFolder(
                self.folder / "checkpoints",
                self.folder / "state",
                self.folder / "metrics.jsonl",
                self.folder / "profile",
            ),
            "runtime": self.runtime,
            "world": World.of(self.runtime),
            "kept": GroupFiles(self.folder / "state" / "rollouts", *ranks()),
            "record_rollouts": self.rollouts.__setitem__,
            "stop_requested": self.stop_requested,
            "report": self._report,
        }
        return train(model, TOKENIZER, self.spec, **{**arguments, **changes})

    def _report(self, line):
        self.reports.append(line)
        self.on_report(line)

    def weights(self) -> bytes:
        return (self.folder / "checkpoints" / f"step-{self.spec.steps}" / "model.safetensors").read_bytes()

    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


class Killed(Exception):
    """A training that ends here, without a word."""


def run_until(session: Session, reached: Callable[[], bool], end: type[BaseException]) -> None:
    """Run the session until it ends with `end` (Interrupted, or Killed) once `reached()`; it can be run again then."""

    def die(line):
        if reached():
            raise Killed

    if end is Killed:
        session.on_report = die
    else:
        session.stop_requested = reached
    with pytest.raises(end):
        session.run()
    session.stop_requested, session.on_report = lambda: False, lambda line: None


def ranks() -> tuple[int, int]:
    """Rank and number of ranks of this process, as a launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def without_times(lines):
    return [{k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per", "peak"))} for line in lines]


def run_in_processes(session: Session, processes: int = 2, nodes: int = 1) -> list[int]:
    """Run the session in several gloo processes, spread over so many nodes by name; their exit codes."""
    children = processes_of(lambda _: session.run(), processes, nodes)
    for child in children:
        child.join(timeout=600)
    return [child.exitcode for child in children]


def processes_of(run: Callable[[int], object], processes: int, nodes: int = 1) -> list[multiprocessing.Process]:
    """Start several gloo processes of one training; each calls `run` with its rank.

    As under torchrun, another process serves the rendezvous: a rank that ends first does not take it from the others.
    """
    on_node, (port, held) = processes // nodes, serve_rendezvous()

    def work(rank):
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank % on_node), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(on_node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        PartialState._reset_state()  # a test before this one may have made it, for one process
        # A fork lacks the threads of its parent's pool. One thread replaces the pool: several at once, such as those in
        # which transformers loads weights, race for it ("Invalid thread pool!").
        torch.set_num_threads(1)
        run(rank)

    children = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(processes)]
    for child in children:
        child.start()
    held.close()
    return children


def serve_rendezvous() -> tuple[int, Connection]:
    """The port of a store, and what holds it: it is served until no process has this open.

    Not by a thread of this process, which forks: a lock that the thread has at that moment stays locked in the child.
    """
    (receiver, sender), (end, held) = (multiprocessing.Pipe(duplex=False) for _ in range(2))

    def serve():
        held.close()
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        sender.send(store.port)
        end.poll(None)

    multiprocessing.get_context("fork").Process(target=serve, daemon=True).start()
    return receiver.recv(), held
