"""A study without models: config -> plan -> frozen specs -> payloads from a function -> sealed artifacts.

Tests of views decide what every completion is (`Behaviour`) and compare the tables with numbers computed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfdistill.artifacts.store import Artifact, all_artifacts, find
from selfdistill.artifacts.tables import CONTEXTS, PROBLEMS, PROMPTS, ROLLOUTS, SFT, read_rows, write_rows, write_table
from selfdistill.epistemic import count
from selfdistill.files import pretty_json, sha256_file, sha256_text, write_atomically
from selfdistill.plan.workspace import Workspace, plan_path
from selfdistill.schema.stages import TrainSpec


@dataclass(frozen=True)
class Said:
    """One completion."""

    outcome: str
    text: str
    tokens: int
    stop_reason: str = "eos"


#: (artifact of stage evaluate or rollouts, step, family, row, sample) -> completion
Behaviour = Callable[[Artifact, int, str, int, int], Said]
#: (artifact of stage train, step) -> scalars of that step
Scalars = Callable[[Artifact, int], dict[str, float]]

LEXICON = ["wait", "maybe"]
_SAMPLING = {"max_tokens": 16}
CONFIG: dict[str, Any] = {
    "questions": {"plain": "{question}"},
    "reprompts": {
        name: {"frame": "{prompt}{solution}", "solution": " {successful_previous_attempt}"}
        for name in ("training", "analysis")
    },
    "lexicon": LEXICON,
    "datasets": {
        "drill": {"source": {"kind": "toy", "families": ["id"], "count": 4}},
        "exam": {"source": {"kind": "toy", "families": ["long", "mod"], "count": 1}},
    },
    "models": {
        "tiny": {
            "pretrain": {"steps": 2, "optimiser": {"learning_rate": 1e-3}, "max_final_loss": 9.0},
            "question": "plain",
            "engine": "torch",
            "max_positions": 64,
            "max_prompt_tokens": 32,
            "training_sampling": _SAMPLING,
            "evaluation_sampling": _SAMPLING,
            "analysis_sampling": _SAMPLING,
        }
    },
    "benchmarks": {"exam": {"dataset": "exam", "domain": "ood", "samples": 2}},
    "recipes": {
        name: {
            "method": method,
            "steps": 12,
            "prompts_per_step": 2,
            "prompts_per_update": 2,
            "optimiser": {"learning_rate": 1e-3},
            "checkpoint_every": 6,
        }
        for name, method in {
            "grpo": {"name": "grpo"},
            "sdpo": {"name": "sdpo", "context": "solution"},
            "sdpo_nothink": {"name": "sdpo", "context": "solution_no_think"},
            "guided": {"name": "sft", "arm": "guided"},
            "unguided": {"name": "sft", "arm": "unguided"},
        }.items()
    },
    "experiments": {
        f"tiny_{recipe}": {
            "model": "tiny",
            "recipe": recipe,
            "dataset": "drill",
            "seeds": [0, 1],
            "benchmarks": ["exam"],
            **({"sft": {"samples": 2}} if "guided" in recipe else {}),
            **({"coverage": {"distinct": [2], "seeds": [0]}} if recipe in ("grpo", "sdpo") else {}),
        }
        for recipe in ("grpo", "sdpo", "sdpo_nothink", "guided", "unguided")
    },
    "richness": {"tiny": {"dataset": "drill", "samples": 2}},
    "report": {
        "experiments": ["tiny_grpo", "tiny_sdpo", "tiny_sdpo_nothink", "tiny_guided", "tiny_unguided"],
        "richness": ["tiny"],
        "sft": ["tiny"],
        "coverage": ["tiny"],
    },
}


def build_study(view: str, name: str, behaviour: Behaviour, scalars: Scalars, config: dict[str, Any] = CONFIG) -> Path:
    """Plan a view in the working directory, fill and seal everything behind it; returns the plan's path."""
    Workspace(config).view_inputs(view, name)
    for artifact in all_artifacts():
        fill(artifact, behaviour, scalars)
    return plan_path(view, name)


def fill(artifact: Artifact, behaviour: Behaviour, scalars: Scalars) -> None:
    """Payload and seal of one artifact, upstream ones first."""
    if artifact.is_sealed:
        return
    for upstream in artifact.input_ids.values():
        fill(Artifact(find(upstream)), behaviour, scalars)
    params = artifact.frozen_spec["params"]
    if artifact.stage in ("evaluate", "rollouts"):
        _write_rollouts(artifact, behaviour)
    elif artifact.stage == "train":
        _write_training(artifact, scalars)
    else:
        _WRITERS[artifact.stage](artifact, params)
    attempt = {"commit": "c" * 40, "dirty": None, "started": "2026-01-02T03:04:05+00:00", "finished": None}
    write_atomically(artifact.folder / "provenance.json", pretty_json({"attempts": [attempt]}))
    artifact.seal(_summary(artifact))


def vouch_again(artifact: Artifact) -> None:
    """Let the manifest vouch for the files as they are now: as if the stage had made them so."""
    manifest = json.loads(artifact.manifest_path.read_text())
    for name, entry in manifest["files"].items():
        entry |= {"sha256": sha256_file(artifact.folder / name), "size": (artifact.folder / name).stat().st_size}
    write_atomically(artifact.manifest_path, pretty_json(manifest))


def _write_problems(artifact: Artifact, params: dict[str, Any]) -> None:
    source = params.get("source")
    if source is None:
        rows = read_rows(artifact.input("problems").payload / "problems.parquet")[: params.get("distinct")]
    else:
        rows = [
            {"question": f"{family} {number} seed {source['seed']}", "family": family}
            for family in source["families"]
            for number in range(source["count"])
        ]
    made = [
        {"answer": "1", "solution": None, "source": "made", "problem_id": sha256_text(r["question"])[:16], **r}
        | {"row_id": i}
        for i, r in enumerate(rows)
    ]
    write_rows(artifact.payload / "problems.parquet", made, PROBLEMS)


def _write_prompts(artifact: Artifact, params: dict[str, Any]) -> None:
    problems = read_rows(artifact.input("problems").payload / "problems.parquet")
    rows = [p | {"messages": json.dumps([]), "prompt_ids": [1, 2]} for p in problems]
    write_rows(artifact.payload / "prompts.parquet", rows, PROMPTS)


def _write_rollouts(artifact: Artifact, behaviour: Behaviour) -> None:
    params = artifact.frozen_spec["params"]
    prompts = read_rows(artifact.input("prompts").payload / "prompts.parquet")
    rows = []
    for step in params.get("steps", [0]):
        for prompt in prompts:
            for sample in range(params["samples"]):
                said = behaviour(artifact, step, prompt["family"], prompt["row_id"], sample)
                rows.append(_rollout(prompt, step, sample, said))
    write_rows(artifact.payload / "rollouts.parquet", rows, ROLLOUTS)


def _rollout(prompt: dict[str, Any], step: int, sample: int, said: Said) -> dict[str, Any]:
    return prompt | {
        "step": step,
        "sample": sample,
        "prompt_tokens": 2,
        "completion": said.text,
        "completion_ids": [],
        "logprobs": [],
        "completion_tokens": said.tokens,
        "stop_reason": said.stop_reason,
        "outcome": said.outcome,
        "reward": float(said.outcome == "correct"),
        "extracted": "1",
    }


def _write_counts(artifact: Artifact, params: dict[str, Any]) -> None:
    rows = read_rows(artifact.input("rollouts").payload / "rollouts.parquet")
    columns: dict[str, list[Any]] = {
        name: [row[name] for row in rows]
        for name in ("step", "row_id", "sample", "problem_id", "family", "completion_tokens")
    }
    for mode in ("substring", "word"):
        counts = [count(row["completion"], params["words"], mode) for row in rows]
        columns[f"{mode}_total"] = [sum(c.values()) for c in counts]
        columns |= {f"{mode}:{word}": [c[word] for c in counts] for word in params["words"]}
    write_table(artifact.payload / "counts.parquet", pa.table(columns))


def _write_diagnostics(artifact: Artifact, params: dict[str, Any]) -> None:
    """Per completion: 1 epistemic token with a loss of 3, 3 others with a loss of 1 in all; 2 forks, 1 undecided."""
    rollouts = read_rows(artifact.input("rollouts").payload / "rollouts.parquet")
    tokens, completions = [], []
    for row in rollouts:
        about = {name: row[name] for name in ("step", "row_id", "sample", "family")}
        for value, width, loss in (("epistemic", 1, 3.0), ("other", 3, 1.0)):
            sums = {"loss": loss, "kl": 2 * loss, "gap": -loss, "pmi": -loss, "logit_gradient": loss / 2}
            tokens.append(about | {"cut": "class", "value": value, "tokens": width, **sums})
            tokens.append(about | {"cut": "position", "value": "0" if width == 1 else "1", "tokens": width, **sums})
        completions.append(
            about
            | {"reward": row["reward"], "answer": row["extracted"], "tokens": 4, "is_looping": False}
            | {"has_context": True, "forks": 2, "undecided_forks": 1, "branch_reward": 0.25}
        )
    steps = sorted({row["step"] for row in rollouts})
    parts = ("all", "epistemic", "other")
    gradients = [{"step": step, "value": value, "norm": 0.5} for step in steps for value in parts]
    for name, table in (("tokens", tokens), ("completions", completions), ("gradients", gradients)):
        write_table(artifact.payload / f"{name}.parquet", pa.Table.from_pylist(table))


def _write_training(artifact: Artifact, scalars: Scalars) -> None:
    params = artifact.frozen_spec["params"]
    lines = [json.dumps({"step": step} | scalars(artifact, step)) for step in range(1, params["steps"] + 1)]
    write_atomically(artifact.metrics, "\n".join(lines) + "\n")
    for name in artifact.spec(TrainSpec).due_payload:
        path = artifact.payload / name
        write_atomically(path if path.suffix else path / "config.json", "{}")


def _write_model(artifact: Artifact, params: dict[str, Any]) -> None:
    write_atomically(artifact.payload / "model/config.json", "{}")


_WRITERS: dict[str, Callable[[Artifact, dict[str, Any]], None]] = {
    "dataset": _write_problems,
    "sample": _write_problems,
    "select": _write_problems,
    "prompts": _write_prompts,
    "epistemics": _write_counts,
    "pretrain": _write_model,
    "model": _write_model,
    "contexts": lambda a, p: write_rows(a.payload / "contexts.parquet", [], CONTEXTS),
    "diagnostics": _write_diagnostics,
    "sft_data": lambda a, p: write_rows(a.payload / "sft.parquet", [], SFT),
}


def _summary(artifact: Artifact) -> dict[str, Any]:
    """Summaries in the form of the stages, with something dropped."""
    return {
        "dataset": {"problems": 4, "dropped": {"duplicate": 3}},
        "prompts": {"prompts": 4, "dropped": {"too long": 1}},
        "rollouts": {"completions": 4, "prompts_without_context": 2, "truncated_contexts": 1},
        "contexts": {"contexts": 2, "problems": 4, "missing": {"no correct completion": 2}},
        "sft_data": {"pairs": 2, "problems": 4},
    }.get(artifact.stage, {})


def kind_of(artifact: Artifact) -> str:
    """base, grpo, solution, solution_no_think, guided, unguided; for rollouts the kind of their context."""
    if artifact.stage == "train":
        method = artifact.frozen_spec["params"]["method"]
        return method.get("context") or method.get("arm") or method["name"]
    if "contexts" in artifact.input_ids:
        return Artifact(find(artifact.input_ids["contexts"])).frozen_spec["params"]["kind"]
    if artifact.stage == "evaluate":
        model = Artifact(find(artifact.input_ids["model"]))
        return kind_of(model) if model.stage == "train" else "base"
    return "none"


def seed_of(artifact: Artifact) -> int | None:
    """Training seed behind an evaluation; None for the base."""
    model = artifact if artifact.stage == "train" else Artifact(find(artifact.input_ids["model"]))
    return model.frozen_spec["params"]["seed"] if model.stage == "train" else None


def generator(artifact: Artifact, *parts: int) -> np.random.Generator:
    return np.random.default_rng([int(artifact.key, 16), *parts])
