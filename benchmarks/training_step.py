"""A whole training step (sample, grade, teach, update): tokens per second against TRL's GRPOTrainer and SDPOTrainer.

The same work on both sides: 16 prompts x 8 completions for the toy network, 8 x 8 for 20 million weights; lengths
forced from one distribution (networks.py); temperature 1, nothing truncated; float32, AdamW, one update a step, no
gradient checkpointing. Half of every group is right, so every row has an advantage and a demonstration, and no side can
leave rows out. GRPO: no division by the deviation, clip 0.2 and 0.28, no KL. SDPO: the 20 most likely tokens and a
tail, alpha 0.5, a fixed teacher, one re-prompt template. TRL takes all rows as one batch and samples with the library's
dynamic cache. Tokens are those of completions; the first step of each run is not counted.

    python benchmarks/training_step.py [--sizes toy] [--methods grpo] [--threads 1] [--phases] [--repeats 5] [--json]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import Pair, Quantity, child, options, run
from networks import (
    END,
    PADDING,
    SIZES,
    completion_lengths,
    force_lengths_in_library,
    force_lengths_in_torch_sampler,
    make_network,
    make_questions,
    make_tokenizer,
)

GROUP, WORDS, STEPS, TOP_K = 8, 24, 3, 20
PROMPTS, LIMITS = {"toy": 16, "20M": 8}, {"toy": 96, "20M": 128}
METHODS = ("grpo", "sdpo")
PEERS = {"grpo": "TRL GRPOTrainer", "sdpo": "TRL SDPOTrainer"}
RATE = 1e-5
FRAME, SOLUTION = "{prompt}{solution} w10", " w11 {successful_previous_attempt}"


def lengths_of(size: str) -> list[int]:
    return completion_lengths(PROMPTS[size] * GROUP, LIMITS[size])


def questions_of(size: str) -> list[list[dict[str, str]]]:
    return make_questions(PROMPTS[size], WORDS, SIZES[size]["vocab_size"])


def every_other(count: int) -> list[float]:
    """Half of every group is right."""
    return [float(index % 2) for index in range(count)]


def ours(size: str, method: str, threads: int) -> dict[str, float]:
    """Tokens per second, and seconds of each phase, medians over the steps."""
    import torch

    torch.set_num_threads(threads)
    from selfdistill.generation.base import sample_seed
    from selfdistill.generation.torch_sampler import TorchSampler
    from selfdistill.rollouts import Prompt
    from selfdistill.schema.runtime import StageRuntime
    from selfdistill.stages.shared.kept_groups import GroupFiles
    from selfdistill.training.data import TrainingFolder, draw_indices
    from selfdistill.training.distributed import World
    from selfdistill.training.loop import train

    spec, lengths = our_spec(size, method), lengths_of(size)
    seeds = {}
    for step in range(1, STEPS + 1):
        for place, row in enumerate(draw_indices(spec, step, PROMPTS[size])):
            for sample in range(GROUP):
                seeds[sample_seed(spec.seed, "rollout", step, place, row, sample)] = lengths[place * GROUP + sample]
    force_lengths_in_torch_sampler(seeds)
    model, tokenizer = make_network(size), make_tokenizer(size)
    chats = questions_of(size)
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    prompts = [Prompt(row, str(row), "", "", "", chat, ids[row]) for row, chat in enumerate(chats)]
    reports: list[dict] = []
    runtime = StageRuntime(state_every_steps=10**6, threads=threads)
    with tempfile.TemporaryDirectory() as place:
        folder = TrainingFolder(*(Path(place) / name for name in ("checkpoints", "state", "metrics.jsonl", "profile")))
        train(
            model, tokenizer, spec, prompts=prompts, examples=None,
            sampler=TorchSampler(model, [END], pad_token_id=PADDING), grade=our_grades,
            folder=folder,
            runtime=runtime, world=World.of(runtime), kept=GroupFiles(Path(place) / "rollouts", 0, 1),
            record_rollouts=lambda step, rows: None, stop_requested=lambda: False, report=reports.append,
        )  # fmt: skip
    steps = [line for line in reports if "seconds_step" in line][1:]
    assert all(round(line["completion_tokens_mean"] * len(lengths)) == sum(lengths) for line in steps)
    assert all(line["supervised_tokens"] == sum(lengths) for line in steps)
    # A step has only the phases that it needed: the last one gives no weights to the sampler.
    phases = {name for line in steps for name in line if name.startswith("seconds_")}
    found = {name: median(line.get(name, 0.0) for line in steps) for name in sorted(phases)}
    return {"tokens_per_second": sum(lengths) / found["seconds_step"], **found}


def our_spec(size: str, method: str):
    from selfdistill.schema.common import MathGrader, Optimiser, RepromptTemplate, Sampling
    from selfdistill.schema.methods import Grpo, Sdpo
    from selfdistill.schema.stages import TrainSpec
    from selfdistill.schema.training import OnPolicy

    reprompt = RepromptTemplate(frame=FRAME, solution=SOLUTION)
    return TrainSpec(
        method=Grpo() if method == "grpo" else Sdpo(top_k=TOP_K, reprompt=reprompt),
        seed=0,
        steps=STEPS,
        prompts_per_step=PROMPTS[size],
        prompts_per_update=PROMPTS[size],
        draw="epochs",
        optimiser=Optimiser(learning_rate=RATE, warmup_steps=0),
        on_policy=OnPolicy(
            group_size=GROUP,
            sampling=Sampling(max_tokens=LIMITS[size]),
            grader=MathGrader(),
            engine="torch",
            correction_clip=2.0,
        ),
        checkpoint_every=STEPS,
        max_steps_without_signal=50,
        precision="float32",
        thinking=None,
    )


def our_grades(texts, prompts, stop_reasons):
    from types import SimpleNamespace

    return [
        SimpleNamespace(outcome="correct" if reward else "wrong", reward=reward, extracted="", feedback="")
        for reward in every_other(len(texts))
    ]


def trl(size: str, method: str, threads: int) -> dict[str, float]:
    """The same with TRL: seconds from the end of one step to the end of the next, and those inside `generate`."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch

    torch.set_num_threads(threads)
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback

    class Clock(TrainerCallback):
        ends: list[float] = []

        def on_step_end(self, *arguments, **named):
            self.ends.append(time.perf_counter())

    clock, sampling, lengths = Clock(), [], lengths_of(size)
    with tempfile.TemporaryDirectory() as place:
        # Its fixed teacher is loaded from the path that the model came from.
        make_network(size).save_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        generate = model.generate

        def forced(input_ids, **named):
            started = time.perf_counter()
            processor = force_lengths_in_library(lengths, input_ids.shape[1])
            answers = generate(input_ids=input_ids, logits_processor=processor, **named)
            sampling.append(time.perf_counter() - started)
            assert [row.index(END) + 1 for row in answers[:, input_ids.shape[1] :].tolist()] == lengths
            return answers

        model.generate = forced
        trainer_class, settings = trl_settings(size, method, place)
        trainer = trainer_class(
            model=model,
            args=settings,
            reward_funcs=lambda completions, **_: every_other(len(completions)),
            train_dataset=Dataset.from_dict(
                {"prompt": make_questions(PROMPTS[size], WORDS, SIZES[size]["vocab_size"])}
            ),
            processing_class=make_tokenizer(size),
            callbacks=[clock],
        )
        trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    assert len(seconds) == STEPS - 1 and len(sampling) == STEPS
    step = median(seconds)
    return {
        "tokens_per_second": sum(lengths) / step,
        "seconds_sampling": median(sampling[1:]),
        "seconds_step": step,
    }


def trl_settings(size: str, method: str, place: str):
    """Trainer and its settings; see the top of this file for what they have to match."""
    shared = {
        "output_dir": place, "per_device_train_batch_size": PROMPTS[size] * GROUP, "gradient_accumulation_steps": 1,
        "num_generations": GROUP, "max_completion_length": LIMITS[size], "max_steps": STEPS, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "weight_decay": 0.01, "max_grad_norm": 1.0, "optim": "adamw_torch_fused",
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0,
        "scale_rewards": "none", "loss_type": "grpo", "shuffle_dataset": False, "gradient_checkpointing": False,
        "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True,
    }  # fmt: skip
    if method == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        return GRPOTrainer, GRPOConfig(**shared)
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    settings = SDPOConfig(
        **shared, distillation_mode="topk_logits", distillation_topk=TOP_K, distillation_alpha=0.5,
        distillation_add_tail=True, teacher_model_kind="base",
        reprompt_template=FRAME.replace("{solution}", "{solution}{feedback}"), solution_template=SOLUTION,
    )  # fmt: skip
    return SDPOTrainer, settings


SIDES = {"ours": ours, "trl": trl}


def pairs(sizes: list[str], methods: list[str], threads: int):
    def speed(function, size, method):
        return child(__file__, function, size=size, method=method, threads=threads).value["tokens_per_second"]

    for size in sizes:
        for method in methods:
            yield Pair(
                f"{method.upper()} step, {size} network", PEERS[method], (Quantity("training", "tokens/s"),),
                ours=lambda s=size, m=method: speed("ours", s, m),
                peer=lambda s=size, m=method: speed("trl", s, m),
                warm_up=False,
            )  # fmt: skip


def show_phases(sizes: list[str], methods: list[str], threads: int) -> None:
    """Where the time of a step goes, on both sides."""
    for size in sizes:
        for method in methods:
            for side in SIDES:
                found = child(__file__, side, size=size, method=method, threads=threads).value
                phases = ", ".join(
                    f"{name.removeprefix('seconds_')} {value:.3f} s"
                    for name, value in found.items()
                    if "sec" in name[:4]
                )
                print(f"{size} {method} {side}: {found['tokens_per_second']:,.0f} tokens/s; {phases}")


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=PROMPTS, default=list(PROMPTS), help="networks")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="objectives")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side (default: %(default)s)")
    parser.add_argument("--phases", action="store_true", help="print where the time goes, once, and nothing else")
    chosen = parser.parse_args()
    if chosen.phases:
        show_phases(chosen.sizes, chosen.methods, chosen.threads)
    else:
        run(pairs(chosen.sizes, chosen.methods, chosen.threads), chosen)
