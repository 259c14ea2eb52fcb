"""Metrics of each step as one line of JSON: written by the main rank, truncated to the state on resume."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from selfdistill.epistemic import PAPER_WORDS, count_many, density, tokens_of
from selfdistill.files import write_atomically
from selfdistill.rollouts import Rollout
from selfdistill.schema.errors import UserError
from selfdistill.training.data import CONTEXT, RowPlan


def append_metrics(path: Path, metrics: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")


def drop_metrics_after(path: Path, step: int) -> None:
    """Keep the complete lines of steps up to `step`; a line cut off by a crash is dropped, too."""
    if not path.exists():
        return
    kept = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): discard the run and train again.") from None
    write_atomically(path, "".join(kept))


def rollout_metrics(groups: Sequence[Sequence[Rollout]], plans: Sequence[Sequence[RowPlan]]) -> dict[str, float]:
    """Means over all completions that a step drew, and the share of the groups it learns from that have a signal."""
    rollouts = [rollout for group in groups for rollout in group]
    count = len(rollouts)
    tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
    usable = sum(any(plan.has_signal for plan in group) for group in plans)
    words = sum(map(sum, count_many((rollout.text for rollout in rollouts), PAPER_WORDS, "substring").values()))
    return {
        "reward_mean": sum(rollout.reward for rollout in rollouts) / count,
        "completion_tokens_mean": tokens / count,
        "truncation_rate": sum(rollout.completion.stop_reason == "length" for rollout in rollouts) / count,
        "unparsed_share": sum(rollout.outcome == "unparsed" for rollout in rollouts) / count,
        "timeout_share": sum(rollout.outcome == "timeout" for rollout in rollouts) / count,
        "unreadable_gold_share": sum(rollout.outcome == "unreadable_gold" for rollout in rollouts) / count,
        "usable_group_share": usable / len(plans),
        "epistemic_count_mean": words / count,
        "epistemic_density_per_1k_tokens": density(words, tokens),
    }


def teacher_metrics(plans: Sequence[Sequence[RowPlan]]) -> dict[str, float]:
    """Share of rows with a teacher context; among these, of cut ones, and of ones without or still with thinking."""
    rows = [plan for group in plans for plan in group]
    shown = [plan.teachers.values() for plan in rows if CONTEXT in plan.teachers]
    return {
        "demonstration_share": len(shown) / len(rows),
        "teacher_prompt_truncated_share": _share(any(p.is_truncated for p in prompts) for prompts in shown),
        "stripped_share": _share(any(p.is_stripped for p in prompts) for prompts in shown),
        "leaked_thinking_share": _share(any(p.has_leaked_thinking for p in prompts) for prompts in shown),
    }


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / max(len(found), 1)


def epistemic_tokens(tokenizer: Any, vocabulary: int) -> torch.Tensor:
    """Which tokens are epistemic words by themselves, in any case and with or without a word-start mark [V]."""
    is_epistemic_V = torch.zeros(vocabulary, dtype=torch.bool)
    tokens = [token for found in tokens_of(tokenizer.get_vocab(), PAPER_WORDS).values() for token in found]
    is_epistemic_V[[token for token in tokens if token < vocabulary]] = True
    return is_epistemic_V


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far: of the process on a CPU, of allocated tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
