"""What goes into an archive: artifacts with everything upstream, the tables made from them, and the workflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from selfdistill.artifacts.lineage import closure
from selfdistill.artifacts.store import Artifact
from selfdistill.plan.made_views import record_of
from selfdistill.plan.subjects import targets_showing
from selfdistill.plan.views import DEFAULT_REPORT, VIEWS, target_of
from selfdistill.plan.workspace import read_plan
from selfdistill.schema.errors import UserError

#: Folder of an archive with the workflow and its settings: for readers; an import does not touch those of a project.
WORKFLOW = "project"
_WORKFLOW_FILES = (
    "Snakefile", "stages.lock.json", "pyproject.toml", "LICENSE", "CITATION.cff", "config/config.yaml",
    "config/runtime.yaml", "config/assets.lock.yaml",
)  # fmt: skip
_WORKFLOW_PATTERNS = ("workflow/**/*", "requirements/*")
#: Files of an artifact beside its payload; resume states, locks and refusals belong to this machine.
_RECORDS = ("spec.json", "names.json", "log.txt", ".sealed.json", "manifest.json")
_RECORD_PATTERNS = ("provenance*.json", "changes-*.patch")
#: Folders of tables, pages and their parts below results/.
_FOLDERS = {*VIEWS, "reports", "figures", "tables"} - {"report"}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class Selection:
    """Artifacts, upstream first, and finished tables with their plans; `left_out` are files that stay here."""

    artifacts: Sequence[Artifact]
    targets: Mapping[Path, Path]
    without_weights: bool = False
    without_rollouts: bool = False

    @classmethod
    def of(cls, subjects: Sequence[Artifact], *, without_weights: bool, without_rollouts: bool) -> Selection:
        """Everything behind some artifacts. UserError if one of them is not finished."""
        chain = list(closure(subjects))
        unfinished = [artifact.name for artifact in chain if not artifact.is_sealed]
        if unfinished:
            raise UserError(f"{unfinished[0]} is not finished: run the workflow first, then export.")
        return cls(chain, _targets(chain), without_weights, without_rollouts)

    def files(self) -> Iterator[tuple[Path, str | None]]:
        """Files that go in, relative to the project, with the SHA-256 under which they were sealed.

        The manifests come after the payloads that they name.
        """
        for artifact in self.artifacts:
            entries = {artifact.folder / name: entry["sha256"] for name, entry in artifact.manifest["files"].items()}
            yield from ((path, digest) for path, digest in entries.items() if not self._stays(artifact, path))
            records = [artifact.folder / name for name in _RECORDS]
            records += [path for pattern in _RECORD_PATTERNS for path in sorted(artifact.folder.glob(pattern))]
            yield from ((path, None) for path in records if path.is_file())
        of_targets = [path for file, plan in self.targets.items() for path in (plan, record_of(plan, str(file)), file)]
        yield from ((path, None) for path in dict.fromkeys(of_targets) if path.is_file())

    def workflow_files(self) -> Iterator[Path]:
        """The workflow, its settings and its locks."""
        yield from (path for path in map(Path, _WORKFLOW_FILES) if path.is_file())
        for pattern in _WORKFLOW_PATTERNS:
            yield from (path for path in sorted(Path().glob(pattern)) if path.is_file() and path.suffix != ".pyc")

    @cached_property
    def left_out(self) -> list[str]:
        """Files of the artifacts that stay here."""
        return [
            str(artifact.folder / name)
            for artifact in self.artifacts
            for name in sorted(artifact.manifest["files"])
            if self._stays(artifact, artifact.folder / name)
        ]

    def _stays(self, artifact: Artifact, path: Path) -> bool:
        inside = path.relative_to(artifact.folder)
        is_rollouts = artifact.stage in ("rollouts", "evaluate") or inside.parts[:2] == ("payload", "rollouts")
        return (self.without_weights and path.suffix in WEIGHTS) or (
            self.without_rollouts and is_rollouts and path.suffix == ".parquet"
        )


def is_record(inside: str) -> bool:
    """Whether a path inside an artifact's folder is a file beside the payload that an archive holds."""
    return inside in _RECORDS or any(fnmatchcase(inside, pattern) and "/" not in inside for pattern in _RECORD_PATTERNS)


def is_view_file(name: str) -> bool:
    """Whether the workflow makes a table, a page or a part of one under this path."""
    parts = name.split("/")
    return name == target_of("report", DEFAULT_REPORT) or (
        len(parts) > 2 and parts[0] == "results" and parts[1] in _FOLDERS and not name.endswith("/")
    )


def _targets(chain: Sequence[Artifact]) -> dict[Path, Path]:
    """Finished tables and reports that show nothing but these artifacts, with their plans."""
    names = {artifact.name for artifact in chain}
    return {
        path: shown.plan
        for path, shown in targets_showing(names).items()
        if is_view_file(str(path)) and set(read_plan(shown.plan)["artifacts"]) <= names
    }
