"""What a table or page was made from: `made-OUTPUT.json` beside its plan.

    {"output": path, "plan": SHA-256 of the plan, "manifests": digest of the manifests behind it, "sha256": of the file}

Time stamps and Snakemake's own records can be lost or wrong; this says of each file what it shows. A plan names the
code of the views, which counts here, other than the code of stages: a table is made in seconds, and one of an older
version may hold other intervals than its neighbour.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path

from selfdistill.artifacts.source_digest import source_digests
from selfdistill.artifacts.store import ROOT
from selfdistill.files import canonical_json, pretty_json, read_json, sha256_file, sha256_text, write_atomically

_PACKAGE = Path(__file__).parents[1]


@cache
def code_of_views() -> str:
    """Digest of all code that tables and pages are made by, and of the page's templates.

    Finding that code in the sources takes as long as all of the plan's specs. So the digest is kept beside Python's
    own compiled code, under a digest of everything that it may depend on.
    """
    folder = _PACKAGE / "views"
    modules, templates = sorted(folder.glob("*.py")), sorted((folder / "templates").iterdir())
    everything = (*sorted(_PACKAGE.rglob("*.py")), *templates)
    whole = sha256_text("\n".join(f"{path} {sha256_file(path)}" for path in everything))
    kept = Path(cache_from_source(str(_PACKAGE / "plan" / "made_views.py"))).with_suffix(".json")
    with suppress(OSError, ValueError, LookupError, TypeError):
        return read_json(kept)[whole]
    sources = source_digests(_PACKAGE, *(f"selfdistill.views.{path.stem}" for path in modules))
    digest = sha256_text(canonical_json([sources, {path.name: sha256_file(path) for path in templates}]))
    with suppress(OSError):  # The package may be read-only.
        write_atomically(kept, pretty_json({whole: digest}), durable=False)
    return digest


def record_view(plan: Path, output: Path) -> None:
    """Record, after a file was written, what it was made from."""
    made = {
        "output": str(output), "plan": sha256_file(plan), "manifests": _manifests(plan), "sha256": sha256_file(output)
    }  # fmt: skip
    write_atomically(record_of(plan, str(output)), pretty_json(made))


def outdate(plan: Path, root: Path = ROOT) -> None:
    """Make every file that shows something else older than all it is made from, whatever the clock said.

    Older than its plan is not enough: of a small file that is newer, Snakemake compares the content, too.
    """
    for record in plan.parent.glob("made-*.json"):
        made = _read(record)
        output = Path(made.get("output", ""))
        if made and output.is_file() and not _shows(made, plan, root):
            behind = [path for path in (plan, *_manifest_paths(plan, root)) if path.is_file()]
            before = min(path.stat().st_mtime for path in behind) - 1
            os.utime(output, (before, before))


def recorded_outputs(plan: Path) -> list[Path]:
    """Files on record as made from a plan: tables, pages, figures; a damaged record names none."""
    return [Path(made["output"]) for record in sorted(plan.parent.glob("made-*.json")) if (made := _read(record))]


def check_views(plans: Path) -> Iterator[str]:
    """What is wrong with the tables and pages that are on record; one that was removed is no problem."""
    for record in sorted(plans.glob("*/*/made-*.json")):
        plan, made = record.with_name("plan.json"), _read(record)
        output = Path(made.get("output", ""))
        if not made:
            yield f"{record} is damaged: make {record.parent.name} again"
        elif not output.is_file():
            continue
        elif made["sha256"] != sha256_file(output):
            yield f"{output} has changed since it was made"
        elif made["plan"] != (sha256_file(plan) if plan.is_file() else None):
            yield f"{output} shows another plan than {plan}: the next run of snakemake makes it again"
        elif made["manifests"] != _manifests(plan):
            yield f"{output} was made from other results than those that are here: make it again"


def _shows(made: dict[str, str], plan: Path, root: Path) -> bool:
    return (made["plan"], made["manifests"]) == (sha256_file(plan), _manifests(plan, root))


def _manifests(plan: Path, root: Path = ROOT) -> str:
    paths = _manifest_paths(plan, root)
    return sha256_text("\n".join(sha256_file(path) if path.is_file() else "missing" for path in paths))


def _manifest_paths(plan: Path, root: Path) -> list[Path]:
    return [root / artifact / "manifest.json" for artifact in read_json(plan)["artifacts"]]


def record_of(plan: Path, output: str) -> Path:
    """Where the record of a file is, whether or not there is one."""
    return plan.with_name(f"made-{output.replace('/', '_')}.json")


def _read(record: Path) -> dict[str, str]:
    """An intact record; empty if it is damaged."""
    try:
        text = record.read_text(encoding="utf-8")
        made = read_json(record)
        is_intact = set(made) == {"output", "plan", "manifests", "sha256"} and text == pretty_json(made)
        return made if is_intact and record_of(record, made["output"]) == record else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
