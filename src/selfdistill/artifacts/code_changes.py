"""Commit of the project and uncommitted changes: kept as a patch beside the artifact, so that it can be made again.

The patch holds what `git diff HEAD` shows, and new files that git does not ignore. Secrets in it are masked. A patch
that would be too large is not kept: its digest alone is recorded.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from filecmp import cmp
from pathlib import Path
from typing import Any

from selfdistill.files import replacing, sha256_file
from selfdistill.schema.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
#: Largest patch that is kept, and largest new file that is part of it (bytes).
MAX_PATCH, MAX_NEW_FILE = 1_000_000, 200_000
MASK = "***masked***"
_DIGEST_LENGTH = 12
#: Maps every byte to a character and back, so that patterns work on files of any encoding.
_ANY_BYTES = "latin-1"
_SECRETS = re.compile(
    r"""hf_[A-Za-z0-9]{20,} | sk-[A-Za-z0-9_-]{20,} | gh[pousr]_[A-Za-z0-9]{30,} | glpat-[A-Za-z0-9_-]{20,}
      | AKIA[0-9A-Z]{16} | xox[abpr]-[A-Za-z0-9-]{10,} | eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_.-]{20,}
      | (?<=://)[^/\s:@'"]+:[^/\s@'"]+(?=@)
      | (?<=PRIVATE\ KEY-----)[^-]+
      | (?i:(?:api_?key|secret|passw(?:or)?d|access_?key|auth_?token)["']?\s*[:=]\s*["']?)
        (?P<value>[^\s"',;()]{8,}+)(?!\()""",
    re.VERBOSE,
)
#: Names of environment variables whose values are secrets.
_SECRET_NAMES = re.compile(r"(?i)(token|secret|passw(or)?d|api_?key|credential)")
_MIN_SECRET = 8


def check_package(package: Path = _PACKAGE) -> None:
    """UserError if the package that runs is not that of the checkout, whose commit is recorded."""
    here = Path("src") / package.name
    if not here.is_dir() or here.resolve() == package:
        return
    ours, installed = ({path.relative_to(folder) for path in folder.rglob("*.py")} for folder in (here, package))
    differing = sorted(
        path for path in ours | installed if path not in ours & installed or not cmp(here / path, package / path, False)
    )
    if differing:
        raise UserError(
            f"{here / differing[0]} is not what runs: {package} has another version of it, and results would be "
            "recorded with the commit of this checkout. Install the checkout (pip install -e .), or use its own "
            "environment (make env)."
        )


def record_code(folder: Path) -> dict[str, Any]:
    """`commit` and `dirty` (digest of the changes) of an attempt, and the name of its patch; nulls outside a checkout.

    `folder` is the artifact's; the patch is written there once. `masked` counts what was masked in it, and
    `changes_sha256` is the digest of what was written.
    """
    code: dict[str, Any] = {"commit": _line("rev-parse", "HEAD"), "dirty": None}
    changes, left_out = uncommitted() if code["commit"] else (b"", [])
    if left_out:
        code["changes_left_out"] = left_out
    if not changes:
        return code
    code["dirty"] = hashlib.sha256(changes).hexdigest()[:_DIGEST_LENGTH]
    if len(changes) > MAX_PATCH:
        return code | {"changes": None, "changes_note": f"larger than {MAX_PATCH} bytes, so not kept"}
    text, masked = mask_secrets(changes.decode(_ANY_BYTES), os.environ)
    name, patch = f"changes-{code['dirty']}.patch", text.encode(_ANY_BYTES)
    digest = hashlib.sha256(patch).hexdigest()
    if not (folder / name).is_file() or sha256_file(folder / name) != digest:
        with replacing(folder / name, durable=False, shared=True) as partial:
            partial.write_bytes(patch)
    return code | {"changes": name, "masked": masked, "changes_sha256": digest}


def uncommitted() -> tuple[bytes, list[str]]:
    """What differs from the commit, as a patch that `git apply` takes, and new files that are too large for it."""
    top, index = _line("rev-parse", "--show-toplevel"), _line("rev-parse", "--git-path", "index")
    if not top or not index:
        return b"", []
    listed = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", ":/") or b""
    paths = [Path(top, os.fsdecode(name)) for name in listed.split(b"\0") if name]
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    new = [path for path, size in sizes.items() if size <= MAX_NEW_FILE]
    with tempfile.TemporaryDirectory() as folder:
        # A copy of the index that also names the new files: the index of the user stays as it is.
        environment = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        if Path(index).is_file():
            # With its time: git compares it with the times of files to find changes of the last second.
            shutil.copy2(index, environment["GIT_INDEX_FILE"])
        if new:
            _git("add", "--intent-to-add", "--", *map(str, new), environment=environment)
        changes = _git("diff", "--binary", "--no-ext-diff", "HEAD", "--", ":/", environment=environment)
    return changes or b"", sorted(str(path.relative_to(top)) for path in sizes.keys() - set(new))


def mask_secrets(text: str, environment: Mapping[str, str]) -> tuple[str, int]:
    """A text without tokens, passwords and private keys, and the number of places that were masked."""
    known = {
        value for name, value in environment.items() if _SECRET_NAMES.search(name) and len(value.strip()) >= _MIN_SECRET
    }
    count = 0

    def masked(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        value = match["value"] if "value" in match.re.groupindex else None
        return match[0].removesuffix(value) + MASK if value else MASK

    if known:
        longest_first = sorted(known, key=len, reverse=True)
        text = re.sub("|".join(map(re.escape, longest_first)), masked, text)
    return _SECRETS.sub(masked, text), count


def _git(*arguments: str, environment: Mapping[str, str] | None = None) -> bytes | None:
    """What git prints; None if it fails. As bytes, because a changed file may have any encoding."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, timeout=30, check=False, env=os.environ | dict(environment or {})
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _line(*arguments: str) -> str | None:
    found = _git(*arguments)
    return os.fsdecode(found).strip() if found else None
