"""The plan as Snakemake and the command line use it: specs frozen on disk, plans of views, labels, resources.

Only the main process plans. A job finds its spec already frozen and does not read the config, so editing the config
while jobs wait changes nothing for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from selfdistill.artifacts import refusal
from selfdistill.artifacts.code_changes import check_package
from selfdistill.artifacts.lineage import base_slug, closure, last_attempt
from selfdistill.artifacts.store import ROOT, Artifact, freeze, locate
from selfdistill.files import pretty_json, sha256_file, write_if_changed
from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.graph import Node
from selfdistill.plan.made_views import outdate
from selfdistill.plan.names import Names
from selfdistill.plan.planner import Planner
from selfdistill.plan.retries import with_memory_for_retry
from selfdistill.plan.runtime import check_models, load_runtime, merged_settings
from selfdistill.plan.settings import load_config
from selfdistill.plan.site import REFUSED, Site, machine_resources, slurm_resources
from selfdistill.plan.used_configs import record_used_config
from selfdistill.plan.views import ViewPlan, plan_view, targets_of
from selfdistill.schema.assets import read_assets
from selfdistill.schema.errors import SettingError, UserError
from selfdistill.schema.runtime import Resources, RuntimeConfig, StageRuntime

PLANS = Path("results/plans")
#: Stages that can sample in several cluster jobs, one shard of the prompts each.
SHARDED = ("rollouts", "evaluate")


class Workspace:
    """One project directory."""

    def __init__(
        self, config: Mapping[str, Any], *, files: ConfigFiles | None = None, plans: bool = True, root: Path = ROOT
    ) -> None:
        self.raw = dict(config)
        self.files = files or ConfigFiles()
        self.plans = plans
        self.root = root
        self.users: dict[str, set[str]] = {}
        self._names = Names()
        self._views: dict[tuple[str, str], list[str]] = {}
        self._needs: dict[tuple[str, str], tuple[StageRuntime, Resources]] = {}
        self._merged: dict[tuple[str, str], tuple[StageRuntime, Resources]] = {}
        #: Nodes that this process has frozen, by name, so that a plan of a thousand jobs is not read back from disk.
        self._frozen: dict[str, Node] = {}

    @cached_property
    def planner(self) -> Planner:
        with self._naming_files():
            return Planner(load_config(self.raw), read_assets())

    @property
    def runtime_file(self) -> str:
        return self.raw.get("runtime_file", "config/runtime.yaml")

    @cached_property
    def runtime(self) -> RuntimeConfig:
        return load_runtime(self.runtime_file)

    def check(self) -> None:
        """Check all settings, and the code that runs, now, before the first rule needs them."""
        check_package()
        with self._naming_files():
            models = self.planner.model_slugs()  # Checks the config, before its `runtime_file` is opened.
            check_models(self.runtime, self.runtime_file, models)

    @property
    def report_names(self) -> list[str]:
        """Reports that are targets of their own."""
        return sorted(self.planner.config.reports)

    def report_targets(self, name: str) -> list[str]:
        """The report and every table of what it shows."""
        return targets_of(self.planner, name)

    def plan(self, view: str, name: str) -> ViewPlan:
        with self._naming_files():
            return plan_view(self.planner, view, name)

    @contextmanager
    def _naming_files(self) -> Iterator[None]:
        """A mistake in a setting is reported with the file that has it."""
        try:
            yield
        except SettingError as error:
            raise error.named(self.files.source) from None

    def view_inputs(self, view: str, name: str) -> list[str]:
        """Plan file and manifests behind a view; in the main process this freezes every spec upstream."""
        if (view, name) not in self._views:
            if self.plans:
                self._freeze(self.plan(view, name))
                record_used_config(self.files)
                outdate(plan_path(view, name), self.root)
            plan = plan_path(view, name)
            artifacts = read_plan(plan)["artifacts"]
            self._views[view, name] = [str(plan), *(str(self.root / a / "manifest.json") for a in artifacts)]
        return self._views[view, name]

    def _freeze(self, plan: ViewPlan) -> None:
        existing = {(f.parent.name, f.name[-12:]): f for f in self.root.glob("*/*")}
        nodes = list(closure(plan.nodes.values()))
        for node in nodes:
            folder, found = node.folder(self.root), existing.get((node.stage, node.key))
            if found is not None and found != folder:
                # Its slug was spelled differently when it was made. The key is its identity, so rename it.
                found.rename(folder)
            freeze(folder, node.frozen_spec)
            self._frozen[node.name] = node
        for node in reversed(nodes):
            users = self.users.setdefault(node.name, set())
            users |= plan.users.get(node.name, set())
            for upstream in node.inputs.values():
                self.users.setdefault(upstream.name, set()).update(users)
        self._names.write(self.root, self._names.add(plan.rows))
        write_if_changed(plan_path(plan.view, plan.name), pretty_json(plan.as_json()))

    def plan_digest(self, view: str, name: str) -> str:
        """Digest of the plan that a view job is scheduled with; the view refuses a plan with another digest."""
        self.view_inputs(view, name)
        return sha256_file(plan_path(view, name))

    def upstream(self, stage: str, run: str) -> list[str]:
        """Manifests of an artifact's inputs, from its frozen spec."""
        node = self._frozen.get(f"{stage}/{run}")
        if node is not None:
            return [str(self.root / upstream.name / "manifest.json") for _, upstream in sorted(node.inputs.items())]
        artifact = Artifact.open(self.root / stage / run)
        return [str(locate(i, self.root) / "manifest.json") for i in artifact.input_ids.values()]

    def label(self, stage: str, run: str, shard: str = "", *, on_cluster: bool = False) -> str:
        """Readable name of an artifact with the experiments that use it, and its GPUs; on a cluster all it requests."""
        users = sorted(self.users.get(f"{stage}/{run}", ()))
        shown = ", ".join(users[:4]) + (f" and {len(users) - 4} more" if len(users) > 4 else "")
        needs = self.needs(stage, run, shard=shard)
        needed = _short(needs) if on_cluster else _gpus(needs)
        return f"{run[:-13]} [{run[-12:]}]" + (f" for {shown}" if shown else "") + (f" ({needed})" if needed else "")

    def needs(self, stage: str, run: str, attempt: int = 1, shard: str = "") -> Resources:
        """What a job requests.

        A retry requests more memory if it ran out of it, and next to nothing if it was refused. A job that only merges
        its shards requests no GPU.
        """
        folder = self.root / stage / run
        if attempt > 1 and refusal.recall(folder) is not None:
            return REFUSED
        settings, resources = self._settings(stage, run)
        if stage in SHARDED and settings.shards > 1 and not shard:
            resources = resources.model_copy(update={"gpus": 0})
        return resources if attempt == 1 else with_memory_for_retry(resources, folder, shard)

    def _settings(self, stage: str, run: str) -> tuple[StageRuntime, Resources]:
        if (stage, run) not in self._needs:
            item = self._frozen.get(f"{stage}/{run}") or Artifact.open(self.root / stage / run)
            # Hundreds of runs, one for each seed, have the settings of their base model.
            model = base_slug(item)
            if (stage, model) not in self._merged:
                self._merged[stage, model] = merged_settings(self.runtime, stage, model)
            self._needs[stage, run] = self._merged[stage, model]
        return self._needs[stage, run]

    def resources(self, stage: str, run: str, attempt: int, site: Site | None, shard: str = "") -> dict[str, int | str]:
        """What a job requests from Slurm, or without a site from the one machine."""
        needs = self.needs(stage, run, attempt, shard)
        return machine_resources(needs) if site is None else slurm_resources(needs, site)

    def shards(self, stage: str, run: str) -> int:
        """Number of cluster jobs that sample an artifact's completions; of a finished one, the number that made it.

        (With another number its markers would be other files, and Snakemake would find it out of date.)
        """
        artifact = Artifact(self.root / stage / run)
        if artifact.is_sealed:
            return last_attempt(artifact.folder).get("runtime", {}).get("shards", 1)
        return self._settings(stage, run)[0].shards

    def shard_markers(self, stage: str, run: str) -> list[str]:
        """Marker files of an artifact's finished shards; none if one job does everything.

        Outside the main process only markers that exist: the setting may have changed since the job was planned.
        """
        count = self.shards(stage, run)
        folder = self.root / stage / run / "shards"
        paths = [folder / f"{number}-of-{count}.done" for number in range(1, count + 1)] if count > 1 else []
        return [str(path) for path in paths if self.plans or path.exists()]


def _gpus(resources: Resources) -> str:
    return f"{resources.gpus} GPU{'s' * (resources.gpus > 1)}" if resources.gpus else ""


def _short(resources: Resources) -> str:
    gpus = f"{_gpus(resources)}, " if resources.gpus else ""
    minutes = resources.runtime_minutes
    time = f"{minutes // 60} h" if minutes >= 120 else f"{minutes} min"
    return f"{gpus}{resources.mem_mb / 1000:g} GB, {time}"


def plan_path(view: str, name: str) -> Path:
    """Path of a view's plan. Each plan has its own folder, because Snakemake lists a folder only once and would miss a
    file that is written later for another target."""
    return PLANS / view / name / "plan.json"


def read_plan(path: Path, digest: str | None = None) -> dict[str, Any]:
    """A view's plan; UserError when it is missing or is not the one the job was scheduled with."""
    if not path.is_file():
        raise UserError(f"{path} is missing: plan it again with snakemake -n TARGET.")
    if digest is not None and sha256_file(path) != digest:
        raise UserError(f"{path} was planned again while this job waited. Run the same snakemake command once more.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(plan["artifacts"], list) and isinstance(plan["rows"], list):
            return plan
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise UserError(f"{path} is damaged: plan it again with snakemake -n TARGET.")
