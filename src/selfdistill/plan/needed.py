"""Which artifacts something needs: a settings file that was used, a pin, or a job that runs. gc keeps these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from selfdistill.artifacts.lineage import closure
from selfdistill.artifacts.lineage_graph import Lineage
from selfdistill.artifacts.pins import read_pins
from selfdistill.artifacts.running import is_running
from selfdistill.artifacts.store import all_artifacts, id_of
from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.used_configs import UsedConfig
from selfdistill.plan.views import plan_view, view_names
from selfdistill.plan.workspace import PLANS, Workspace, plan_path, read_plan
from selfdistill.schema.errors import UserError


@dataclass
class Needed:
    """Ids (`stage/key`) of what is needed with everything upstream, and remarks for the user."""

    ids: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)

    def by_config(self, project: Workspace) -> None:
        """Everything that a view of this config can show."""
        for view, names in view_names(project.planner).items():
            for name in names:
                try:
                    nodes = plan_view(project.planner, view, name).nodes.values()
                    self.ids |= {node.id for node in closure(nodes)}
                except UserError:
                    # For example an asset that is no longer pinned: keep what the view needed last.
                    self._with_upstream(_last_planned([plan_path(view, name)]), project.root)

    def by_used_config(self, used: UsedConfig, root: Path) -> None:
        """As `by_config`, of settings that were used before; what they planned last if they are no longer valid."""
        if used.missing:
            self.remarks.append(f"{', '.join(used.missing)} is gone: what only {used} needs is not kept.")
            return
        try:
            files = ConfigFiles(used.overlays, used.values)
            self.by_config(Workspace(files.merged(), files=files, root=root))
            self.remarks.append(f"Kept for {used}, too.")
        except UserError as error:
            self._with_upstream(_last_planned(PLANS.glob("*/*/plan.json")), root)
            self.remarks.append(f"{used} is not valid any more ({error}): everything that was planned is kept.")

    def by_pins(self, root: Path) -> None:
        """What is pinned."""
        self._with_upstream(read_pins(root), root)

    def by_jobs(self, root: Path) -> None:
        """What is being computed now."""
        running = [artifact.id for artifact in all_artifacts(root) if is_running(artifact.folder)]
        self._with_upstream(running, root)
        self.remarks += [f"{identity} is being computed now." for identity in running]

    def _with_upstream(self, ids: Iterable[str], root: Path) -> None:
        found = Lineage.of(ids, root)
        self.ids |= {item.id for item in (*found.upstream, *found.subjects)}


def _last_planned(plans: Iterable[Path]) -> list[str]:
    return [id_of(name) for path in plans if path.is_file() for name in read_plan(path)["artifacts"]]
