"""The RO-Crate metadata of an archive: a Workflow Run Crate, which makes it a citable research object.

Profile: https://www.researchobject.org/workflow-run-crate/profiles/workflow_run_crate. The run is that of the workflow
as a whole. Artifacts are data sets with their keys, digests, and what they were made from.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.artifacts.lineage import last_attempt
from selfdistill.artifacts.provenance import now
from selfdistill.artifacts.store import Artifact, manifest_digest
from selfdistill.exchange.selection import WORKFLOW, Selection

if TYPE_CHECKING:
    from rocrate.model import ContextEntity, Dataset
    from rocrate.rocrate import ROCrate

_LICENSE = "https://spdx.org/licenses/Apache-2.0"
_PAPER = "https://arxiv.org/abs/2603.24472"
_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_FORMATS = {".csv": "text/csv", ".html": "text/html", ".json": "application/json", ".yaml": "application/yaml"}


def metadata(selection: Selection, name: str) -> str:
    """ro-crate-metadata.json of an archive of these artifacts and tables."""
    from rocrate.rocrate import ROCrate

    crate = ROCrate(gen_preview=False, version="1.1")
    attempts = [last_attempt(artifact.folder) for artifact in selection.artifacts]
    finished = max((attempt.get("finished") or "" for attempt in attempts), default="") or now()
    crate.name = f"selfdistill: {name}"
    crate.description = (
        f"{len(selection.artifacts)} artifacts and {len(selection.targets)} tables of a study of self-distillation "
        f"({_PAPER}), with the workflow that made them."
    )
    crate.license = _LICENSE
    crate.datePublished = datetime.fromisoformat(finished)
    crate.root_dataset["conformsTo"] = [
        _entity(crate, url, "CreativeWork", name=title, version=version) for url, (title, version) in _PROFILES.items()
    ]
    workflow = crate.add_workflow(
        dest_path=f"{WORKFLOW}/workflow/Snakefile", main=True, lang="snakemake", properties={"name": "selfdistill"}
    )
    inputs = [_file(crate, f"{WORKFLOW}/{path}") for path in selection.workflow_files() if path.parts[0] == "config"]
    tables = [_file(crate, str(target)) for target in selection.targets]
    datasets = _artifacts(crate, selection)
    users = sorted({attempt["user"] for attempt in attempts if attempt.get("user")})
    started = min((attempt.get("started") or "" for attempt in attempts), default="")
    action = _entity(
        crate, "#run", "CreateAction", name=f"Run of the workflow for {name}", instrument=workflow, object=inputs,
        result=[*tables, *datasets], endTime=finished,
        description="Commits: " + ", ".join(sorted({str(attempt.get("commit")) for attempt in attempts})),
        agent=[_entity(crate, f"#user-{user}", "Person", name=user) for user in users],
        **({"startTime": started} if started else {}),
    )  # fmt: skip
    crate.root_dataset.append_to("mentions", action)
    return json.dumps(crate.metadata.generate(), indent=2, ensure_ascii=False) + "\n"


def _artifacts(crate: ROCrate, selection: Selection) -> list[Dataset]:
    """One data set for each artifact; `isBasedOn` leads upstream."""
    made: dict[str, Dataset] = {}
    for artifact in selection.artifacts:
        made[artifact.id] = crate.add_dataset(
            dest_path=f"{artifact.folder}/", properties=_describe(artifact, selection.left_out)
        )
        upstream = [made[identity] for identity in artifact.input_ids.values() if identity in made]
        if upstream:
            made[artifact.id]["isBasedOn"] = upstream
    return list(made.values())


def _describe(artifact: Artifact, left_out: list[str]) -> dict[str, Any]:
    stays = sum(path.startswith(f"{artifact.folder}/") for path in left_out)
    note = f" {stays} files of it are not in this archive." if stays else ""
    return {
        "name": artifact.name,
        "identifier": artifact.id,
        "description": f"Artifact of stage {artifact.stage}; manifest SHA-256 {manifest_digest(artifact)}.{note}",
    }


def _file(crate: ROCrate, path: str) -> Any:
    kind = _FORMATS.get(Path(path).suffix, "text/plain")
    return crate.add_file(dest_path=path, properties={"name": Path(path).name, "encodingFormat": kind})


def _entity(crate: ROCrate, identity: str, kind: str, **properties: Any) -> ContextEntity:
    from rocrate.model import ContextEntity

    entity = crate.add(ContextEntity(crate, identity, properties={"@type": kind}))
    for name, value in properties.items():
        if value not in (None, [], ""):
            entity[name] = value
    return entity
