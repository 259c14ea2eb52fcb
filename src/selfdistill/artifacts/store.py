"""Artifact directories: spec, payload, provenance, seal.

    results/artifacts/<stage>/<slug>-<key>/
        spec.json        the spec: what is made, from what; written once, at planning
        names.json       experiments, seed, benchmark: names that the plan gives it, copied to its provenance
        payload/         results
        state/           resume state; removed after sealing
        last_state/      state after the last training step, if it is kept (`keep_last_state`)
        shards/          markers of finished shards, if several cluster jobs sample
        metrics.jsonl    scalars by step
        log.txt          log lines of all attempts
        provenance.json  code, libraries, machine and settings of each attempt
        .sealed.json     copy of the manifest, from which a lost one is restored
        manifest.json    last; the only file that Snakemake knows

The key is the hash of the spec, known before anything runs. Contents are verified by the digests in the manifest.
Opening an artifact hashes its spec again, so a changed spec is an error.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from selfdistill.artifacts.completeness import what_is_missing
from selfdistill.artifacts.lineage import provenance_path, read_attempts, sealed_manifest
from selfdistill.artifacts.manifest import FORMAT, read_manifest
from selfdistill.files import key_of, pretty_json, remove, sha256_file, sha256_text, sync_tree, write_atomically
from selfdistill.schema.base import Model
from selfdistill.schema.errors import UserError, explain_validation
from selfdistill.schema.stages import STAGES

ROOT = Path("results/artifacts")
SLUG_LENGTH = 60
NAME_PATTERN = r"[a-z0-9._-]{1,60}-[0-9a-f]{12}"

Spec = TypeVar("Spec", bound=Model)


def slugify(text: str) -> str:
    """Lower case, only letters, digits, dots, dashes and underscores; at most 60 characters."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")[:SLUG_LENGTH].rstrip("-.") or "x"


def make_frozen_spec(stage: str, params: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """The hashed spec; `inputs` maps roles to `stage/key` of the upstream artifacts."""
    return {"format": FORMAT, "stage": stage, "version": STAGES[stage].VERSION, "params": params, "inputs": inputs}


def freeze(folder: Path, spec: dict[str, Any]) -> None:
    """Write the spec once. Writing the same spec again changes nothing; a different one is an error.

    It is not flushed to disk: a power cut may leave an empty file, which is written again.
    """
    path = folder / "spec.json"
    text = pretty_json(spec)
    existing = path.read_bytes() if path.is_file() else b""
    if existing:
        if existing != text.encode():
            raise UserError(
                f"{path} differs from the spec that its name stands for. Move {folder} away and plan again."
            )
        return
    write_atomically(path, text, durable=False)


@dataclass(frozen=True)
class Artifact:
    """One artifact directory, sealed or not."""

    folder: Path

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Open a directory (or its manifest path) and check that its spec matches its name."""
        folder = path.parent if path.name == "manifest.json" else path
        artifact = cls(folder)
        if not (folder / "spec.json").is_file():
            raise UserError(f"{folder}/spec.json is missing: plan it first (snakemake -n TARGET) or restore it.")
        try:
            is_the_same = key_of(artifact.frozen_spec) == artifact.key
        except ValueError:  # NaN, or half of a surrogate pair: in no spec that was planned.
            is_the_same = False
        if not is_the_same:
            raise UserError(f"{folder}/spec.json was changed after planning. Move {folder} away, plan again.")
        return artifact

    @cached_property
    def frozen_spec(self) -> dict[str, Any]:
        """The content of spec.json; UserError if it is no spec."""
        path = self.folder / "spec.json"
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(spec["params"], dict) and all(isinstance(i, str) for i in spec["inputs"].values()):
                return spec
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        raise UserError(f"{path} is damaged. Move {self.folder} away and plan again.")

    @property
    def stage(self) -> str:
        return self.folder.parent.name

    @property
    def key(self) -> str:
        return self.folder.name[-12:]

    @property
    def id(self) -> str:
        """`stage/key`: how specs refer to their inputs."""
        return f"{self.stage}/{self.key}"

    @property
    def slug(self) -> str:
        return self.folder.name[:-13]

    @property
    def name(self) -> str:
        """`stage/slug-key`, as it appears in tables and messages."""
        return f"{self.stage}/{self.folder.name}"

    @property
    def payload(self) -> Path:
        return self.folder / "payload"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def last_state(self) -> Path:
        return self.folder / "last_state"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def seal_path(self) -> Path:
        return self.folder / ".sealed.json"

    @property
    def result_paths(self) -> tuple[Path, ...]:
        """Everything that was computed, the manifest first: without it there is no result."""
        shards = self.folder / "shards"
        return (self.manifest_path, self.seal_path, self.payload, self.state, self.last_state, shards, self.metrics)

    @property
    def is_sealed(self) -> bool:
        return self.manifest_path.is_file()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a sealed artifact; UserError when it is not sealed or not this artifact's."""
        if not (self.is_sealed or self.restore()):
            raise UserError(f"{self.name} is not finished: {self.manifest_path} does not exist.")
        return read_manifest(self.manifest_path, self.key)

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest["summary"]

    def spec(self, model: type[Spec]) -> Spec:
        """The spec's parameters as a model of the stage; UserError if they do not fit it."""
        try:
            return model.model_validate(self.frozen_spec["params"])
        except ValidationError as error:
            raise explain_validation(error, model, f"{self.folder}/spec.json") from None

    @property
    def input_ids(self) -> dict[str, str]:
        return self.frozen_spec["inputs"]

    def upstream(self, role: str) -> Artifact:
        """The artifact that serves as an input, finished or not; UserError if it does not exist."""
        if role not in self.input_ids:
            raise UserError(f"{self.name} has no input `{role}`.")
        return Artifact.open(locate(self.input_ids[role], self.root))

    def input(self, role: str) -> Artifact:
        """As `upstream`, but UserError if it is not finished."""
        upstream = self.upstream(role)
        _ = upstream.manifest
        return upstream

    def inputs(self) -> Iterator[tuple[str, Artifact]]:
        """(role, artifact) of every input; UserError if one is not finished."""
        for role in self.input_ids:
            yield role, self.input(role)

    @property
    def root(self) -> Path:
        return self.folder.parent.parent

    def seal(self, summary: dict[str, Any], record: Callable[[str], None] = lambda digest: None) -> None:
        """Digest the payload, write the seal, then the manifest. From here on the artifact exists.

        `record` gets the digest of the manifest before it is written.
        What the manifest vouches for is on disk before it: after a power cut there is no manifest without its files.
        UserError if the spec is gone, or something that it promises is missing: somebody removed it meanwhile.
        """
        opened = Artifact.open(self.folder)
        missing = what_is_missing(opened.spec(STAGES[self.stage]), self.payload, self.metrics)
        if missing:
            raise UserError(f"{self.name} is not sealed: {missing}. Start over: selfdistill discard {self.key} --yes")
        files = {
            str(path.relative_to(self.folder)): {"sha256": sha256_file(path), "size": path.stat().st_size}
            for path in self.content()
        }
        if not files:
            raise RuntimeError(f"{self.name}: nothing to seal")
        for path in (self.payload, self.metrics):
            if path.exists():
                sync_tree(path)
        manifest = {
            "format": FORMAT,
            "stage": self.stage,
            "key": self.key,
            "files": files,
            "inputs": {role: {"id": a.id, "manifest": manifest_digest(a)} for role, a in self.inputs()},
            "summary": summary,
        }
        text = pretty_json(manifest)
        record(sha256_text(text))
        write_atomically(self.seal_path, text)
        write_atomically(self.manifest_path, text)
        self.__dict__.pop("manifest", None)
        shutil.rmtree(self.state, ignore_errors=True)

    def restore(self) -> bool:
        """Bring back a lost manifest from the seal, if that is the one on record and every file has its size."""
        if not self.seal_path.is_file():
            return False
        recorded = sealed_manifest(read_attempts(provenance_path(self.folder)))
        if recorded not in (None, sha256_file(self.seal_path)):
            return False
        try:
            manifest = read_manifest(self.seal_path, self.key)
        except UserError:
            return False
        for name, entry in manifest["files"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return False
        write_atomically(self.manifest_path, self.seal_path.read_text(encoding="utf-8"))
        return True

    def unseal(self) -> None:
        """Forget the result (the spec stays)."""
        for path in self.result_paths:
            remove(path)
        self.__dict__.pop("manifest", None)

    def content(self) -> list[Path]:
        """The files that the manifest vouches for."""
        paths = [p for p in self.payload.rglob("*") if p.is_file()] if self.payload.is_dir() else []
        if self.metrics.is_file():
            paths.append(self.metrics)
        return sorted(paths)


def manifest_digest(artifact: Artifact) -> str:
    return sha256_file(artifact.manifest_path)


def find(artifact_id: str, root: Path = ROOT) -> Path | None:
    """The directory of `stage/key`, whatever its slug; None if it does not exist, as that of a damaged id."""
    if re.fullmatch(r"[a-z_]+/[0-9a-f]+", artifact_id) is None:
        return None
    stage, key = artifact_id.split("/")
    matches = sorted((root / stage).glob(f"*-{key}"))
    if len(matches) > 1:
        raise UserError(f"two directories hold {artifact_id}: {', '.join(map(str, matches))}. Remove one.")
    return matches[0] if matches else None


def locate(artifact_id: str, root: Path = ROOT) -> Path:
    """As `find`, but a missing directory is an error."""
    folder = find(artifact_id, root)
    if folder is None:
        raise UserError(f"artifact {artifact_id} does not exist under {root}; plan it again: snakemake -n TARGET")
    return folder


def all_artifacts(root: Path = ROOT) -> list[Artifact]:
    """Every artifact directory with a spec, sealed or not."""
    return [Artifact(path.parent) for path in sorted(root.glob("*/*/spec.json"))]


def id_of(name: str) -> str:
    """`stage/key` of `stage/slug-key`."""
    stage, _, folder = name.partition("/")
    return f"{stage}/{folder[-12:]}"


def artifact_folders(root: Path = ROOT) -> list[Path]:
    """Every folder with the name of an artifact, with or without a spec."""
    return sorted(path for path in root.glob("*/*") if path.is_dir() and re.fullmatch(NAME_PATTERN, path.name))


def named(name: str, root: Path = ROOT) -> list[Artifact]:
    """Artifacts by key, `stage/key`, `slug-key`, `stage/slug-key` or path; none for another name."""
    wanted = name.rstrip("/").removesuffix("/manifest.json")
    return [a for a in all_artifacts(root) if wanted in (a.key, a.id, a.folder.name, a.name, str(a.folder))]
