"""Cards for the Hugging Face hub, written from the lineage: nothing in them is typed by hand.

Scores are the rows of tables (results/ood/*.csv), so they are the numbers that the report shows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import yaml

from selfdistill.artifacts.lineage import base_model, last_attempt
from selfdistill.artifacts.store import Artifact
from selfdistill.files import sha256_file
from selfdistill.plan.subjects import targets_showing
from selfdistill.schema.assets import read_assets
from selfdistill.schema.methods import method_class

_PAPER = "arXiv 2603.24472"


def model_card(artifact: Artifact, step: int | None, repo: str) -> str:
    """The card of a base model, or of one checkpoint of a training."""
    base, sources = base_model(artifact), list(_sources(artifact))
    licence, pin = _licence(base), base.frozen_spec["params"].get("pin") or {}
    header = {
        "library_name": "transformers", "pipeline_tag": "text-generation", "license": licence,
        "tags": ["selfdistill", "arxiv:2603.24472"],
        **({"base_model": pin["repo"]} if pin.get("repo") and artifact is not base else {}),
    }  # fmt: skip
    params = artifact.frozen_spec["params"]
    method = params.get("method", {})
    title = f"{artifact.slug}, step {step}" if step is not None else artifact.slug
    parts = [
        f"# {title}",
        f"Made by selfdistill, which reproduces {_PAPER}. Artifact `{artifact.name}`.",
        _table("Base model", [_origin(base)]),
        _table("Data", [_origin(source) for source in sources]),
    ]
    if method:
        formula = method_class(method["name"]).formula
        settings = yaml.safe_dump({k: v for k, v in params.items() if k != "on_policy"}, sort_keys=True)
        parts.append(f"## Method\n\n**{method['name'].upper()}**: {formula}.\n\n```yaml\n{settings}```")
    if step is not None:
        parts.append(_scores(artifact, step))
    parts += [_made(artifact), f"## Use\n\n```python\n{_use_model(repo)}```"]
    return _card(header, parts)


def data_card(artifact: Artifact, repo: str, rows: int) -> str:
    """The card of a table of problems, prompts or completions."""
    sources = list(_sources(artifact))
    licences = sorted({_licence(source) for source in sources}) or ["other"]
    header = {
        "license": licences[0] if len(licences) == 1 else "other",
        "tags": ["selfdistill", "arxiv:2603.24472", artifact.stage],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }
    base = base_model(artifact)
    parts = [
        f"# {artifact.slug}",
        f"{rows} rows of stage `{artifact.stage}` of selfdistill, which reproduces {_PAPER}. "
        f"Artifact `{artifact.name}`.",
        *([_table("Model", [_origin(base)])] if base else []),
        _table("Data", [_origin(source) for source in sources]),
        _made(artifact),
        f'## Use\n\n```python\nfrom datasets import load_dataset\n\nrows = load_dataset({repo!r}, split="train")\n```',
    ]
    return _card(header, parts)


def score_rows(artifact: Artifact, step: int) -> Iterator[dict[str, str]]:
    """Rows of finished tables about one checkpoint: all problems of a benchmark together."""
    seed = str(artifact.frozen_spec["params"]["seed"])  # A line over all seeds is about more than this run.
    for table in targets_showing([artifact.name]):
        if table.suffix != ".csv" or table.parent.name != "ood":
            continue
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                about = (row.get("train_artifact"), row["seed"], row["step"], row["family"])
                if about == (artifact.name, seed, str(step), "all"):
                    yield row


def _scores(artifact: Artifact, step: int) -> str:
    rows = [
        f"| {row['benchmark']} | {row['domain']} | {row['n']} x {row['k']} | {row['avg_at_k']} "
        f"| {row['avg_at_k_low']} to {row['avg_at_k_high']} | {row['epistemic_density_per_1k_tokens']} |"
        for row in score_rows(artifact, step)
    ]
    if not rows:
        return "## Scores\n\nNo table on the machine that wrote this card shows this checkpoint."
    head = "| benchmark | domain | problems x samples | avg@k | 95 % interval | epistemic words per 1,000 tokens |"
    return "\n".join(["## Scores", "", head, "|---|---|---|---|---|---|", *rows])


def _sources(artifact: Artifact) -> Iterator[Artifact]:
    """Data sets upstream, without those that were only kept out of them."""
    pending, seen = [artifact], set[str]()
    while pending:
        item = pending.pop()
        if item.id in seen:
            continue
        seen.add(item.id)
        if item.stage == "dataset":
            yield item
        pending += [item.upstream(role) for role in item.input_ids if not role.startswith("exclude")]


def _origin(artifact: Artifact) -> tuple[str, str, str, str]:
    """Name, where it comes from, digest and licence."""
    params = artifact.frozen_spec["params"]
    source = params.get("source", {})
    pin = params.get("pin") or source.get("pin") or {}
    made = [
        f"{name} {value}" for name, value in source.items() if name in ("kind", "families", "task", "count", "seed")
    ]
    where = "@".join(part for part in (pin.get("repo"), (pin.get("revision") or "")[:12]) if part)
    where = (
        " ".join(part for part in (where, pin.get("file")) if part) or ", ".join(made) or "pretrained by this project"
    )
    digest = pin.get("sha256") or _digest(artifact)
    return artifact.name, where, digest, _licence(artifact)


def _digest(artifact: Artifact) -> str:
    """Digest of the manifest, which holds those of all files."""
    return sha256_file(artifact.manifest_path)


def _licence(artifact: Artifact) -> str:
    """SPDX identifier of a pinned asset; what this project generated is under its own licence."""
    params = artifact.frozen_spec["params"]
    pin = params.get("pin") or params.get("source", {}).get("pin")
    if not pin:
        return "apache-2.0"
    for asset in read_assets().assets.values():
        if pin.get("repo") == asset.repo and pin.get("revision") in (None, asset.revision):
            return asset.licence
    return "unknown"


def _table(title: str, rows: list[tuple[str, str, str, str]]) -> str:
    lines = [f"| `{name}` | {where} | `{digest}` | {licence} |" for name, where, digest, licence in rows]
    return "\n".join([f"## {title}", "", "| artifact | from | SHA-256 | licence |", "|---|---|---|---|", *lines])


def _made(artifact: Artifact) -> str:
    attempt = last_attempt(artifact.folder)
    commit = attempt.get("commit") or "not recorded"
    changes = f", with uncommitted changes {attempt['dirty']}" if attempt.get("dirty") else ""
    libraries = ", ".join(f"{name} {version}" for name, version in attempt.get("libraries", {}).items())
    python = attempt.get("python", "not recorded")
    made = f"Commit `{commit}`{changes}. Python {python}; {libraries}."
    return f"## How it was made\n\n{made}\n\nTo make it again:\n\n    selfdistill reproduce {artifact.id}"


def _use_model(repo: str) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({repo!r})\ntokenizer = AutoTokenizer.from_pretrained({repo!r})\n"
    )


def _card(header: dict[str, Any], parts: list[str]) -> str:
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"
