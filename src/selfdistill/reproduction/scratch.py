"""A scratch project in which recorded artifacts can be made again: code of their commit, and their specs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.artifacts.code_changes import uncommitted
from selfdistill.artifacts.lineage import last_attempt
from selfdistill.artifacts.provenance import NAMES_FILE
from selfdistill.artifacts.store import Artifact
from selfdistill.files import pretty_json, read_json, write_atomically
from selfdistill.schema.errors import UserError

#: What was asked of a scratch folder: a folder of another question is not touched.
_REQUEST = ".reproduce.json"
#: What makes a project, for one that is no checkout; and what git ignores but a project needs.
_PROJECT = ("Snakefile", "stages.lock.json", "workflow", "config", "profiles", "local", "slurm", "requirements", "src")
_LOCAL_FILES = ("config/assets.local.yaml", "config/runtime.yaml")
_LOCAL_FOLDERS = ("resources/assets", "resources/models")


@dataclass(frozen=True)
class Code:
    """The code to run: a commit with changes on top of it (a patch), or without a commit the files as they are."""

    commit: str | None
    patch: bytes
    described: str

    @classmethod
    def present(cls) -> Code:
        """The code of this folder, with its uncommitted changes."""
        commit = _git("rev-parse", "HEAD").decode().strip() if _is_checkout() else None
        if commit is None:
            return cls(None, b"", "the present files (no git checkout)")
        patch, left_out = uncommitted()
        note = f", without {', '.join(left_out)}" if left_out else ""
        return cls(commit, patch, f"the present code, commit {commit[:10]}{' with changes' if patch else ''}{note}")

    @classmethod
    def recorded(cls, artifact: Artifact) -> Code:
        """The code that made an artifact. UserError if it is not known, not here, or its changes were not kept."""
        attempt, instead = last_attempt(artifact.folder), "To run the present code instead: --present-code."
        commit = attempt.get("commit")
        if not commit:
            raise UserError(f"{artifact.name} has no recorded commit. {instead}")
        if not _is_checkout() or _try_git("cat-file", "-e", f"{commit}^{{commit}}") is None:
            raise UserError(f"commit {commit} of {artifact.name} is not in this repository: git fetch. {instead}")
        dirty, name = attempt.get("dirty"), attempt.get("changes")
        if not dirty:
            return cls(commit, b"", f"the recorded commit {commit[:10]}")
        path = artifact.folder / (name or "-")
        if not path.is_file():
            raise UserError(
                f"{artifact.name} was made from commit {commit[:10]} with changes that were not kept. {instead}"
            )
        note = f", {attempt['masked']} secrets in them masked" if attempt.get("masked") else ""
        return cls(commit, path.read_bytes(), f"the recorded commit {commit[:10]} with its changes {dirty}{note}")


@dataclass(frozen=True)
class Scratch:
    """A project folder of its own, in which Snakemake makes a few artifacts again."""

    folder: Path

    def artifact(self, original: Artifact) -> Artifact:
        """The artifact here that stands for one of the project."""
        return Artifact(self.folder / "results/artifacts" / original.name)

    def prepare(self, code: Code, chain: Sequence[Artifact]) -> None:
        """Write code and specs; a folder that was prepared for the same is continued. UserError for any other."""
        request = {"commit": code.commit, "code": code.described, "artifacts": [artifact.name for artifact in chain]}
        marker = self.folder / _REQUEST
        file = next((path for path in (self.folder, *self.folder.parents) if path.exists() and not path.is_dir()), None)
        if file:
            raise UserError(f"{file} is a file, so nothing can be made in {self.folder}. Name a folder: --scratch DIR.")
        if self.folder.exists() and any(self.folder.iterdir()):
            if not _is_for(marker, request):
                raise UserError(f"{self.folder} holds something else. Name an empty folder: --scratch DIR.")
            return
        if code.commit is None:
            self._copy_files()
        else:
            self._check_out(code.commit, code.patch)
        self._link_local_files()
        for artifact in chain:
            folder = self.artifact(artifact).folder
            folder.mkdir(parents=True)
            for name in ("spec.json", NAMES_FILE):
                if (artifact.folder / name).is_file():
                    shutil.copy(artifact.folder / name, folder / name)
        write_atomically(marker, pretty_json(request))

    def run(self, targets: Iterable[Artifact], arguments: Iterable[str]) -> int:
        """Let Snakemake make these artifacts; returns its exit code."""
        manifests = [str(self.artifact(target).manifest_path.relative_to(self.folder)) for target in targets]
        source = [str(self.folder.resolve() / "src")] if (self.folder / "src").is_dir() else []
        known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*source, *known]), "SELFDISTILL_TRACKING": "off"
        }  # fmt: skip
        command = [sys.executable, "-m", "snakemake", *arguments, *manifests]
        return subprocess.run(command, cwd=self.folder, env=environment, check=False).returncode

    def _check_out(self, commit: str, patch: bytes) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        _git("worktree", "prune")
        _git("worktree", "add", "--force", "--detach", str(self.folder), commit)
        if patch:
            _git("-C", str(self.folder), "apply", "--binary", "--whitespace=nowarn", "-", given=patch)

    def _copy_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in map(Path, _PROJECT):
            if path.is_symlink():
                (self.folder / path).symlink_to(path.readlink())
            elif path.is_dir():
                shutil.copytree(path, self.folder / path, symlinks=True)
            elif path.is_file():
                shutil.copy(path, self.folder / path)

    def _link_local_files(self) -> None:
        """Settings of this machine, and external files, as the project has them."""
        for name in _LOCAL_FILES:
            if Path(name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, self.folder / name)
        for name in _LOCAL_FOLDERS:
            target = self.folder / name
            if Path(name).is_dir() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(name).resolve())


def _is_for(marker: Path, request: dict[str, Any]) -> bool:
    """Whether a folder was prepared for this; not if its marker is missing or damaged."""
    try:
        return read_json(marker) == request
    except (OSError, ValueError):
        return False


def _is_checkout() -> bool:
    """Whether this folder is the top of a checkout (and not a folder inside of another one)."""
    top = _try_git("rev-parse", "--show-toplevel")
    return top is not None and Path(os.fsdecode(top).strip()).resolve() == Path.cwd().resolve()


def _try_git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _git(*arguments: str, given: bytes | None = None) -> bytes:
    done = subprocess.run(["git", *arguments], input=given, capture_output=True, check=False)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"git {arguments[0]} failed: {message[-1] if message else 'no message'}")
    return done.stdout
