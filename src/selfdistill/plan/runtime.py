"""config/runtime.yaml: every entry checked by itself, and what a job of one stage and one model gets from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from selfdistill.plan.settings import validate_setting
from selfdistill.schema.errors import Keys, SettingError, UserError, unknown
from selfdistill.schema.runtime import Resources, RuntimeConfig, RuntimeEntry, StageRuntime
from selfdistill.schema.stages import STAGES
from selfdistill.schema.yaml_file import read_yaml

#: In place of a stage: every stage of a model.
EVERY_STAGE = "all"


def load_runtime(path: str) -> RuntimeConfig:
    """The runtime file, with the settings, resources and stages of every entry checked; UserError."""
    try:
        runtime = validate_setting(RuntimeConfig, read_yaml(Path(path)))
        for keys, entry in _entries(runtime):
            for model, part in ((StageRuntime, "settings"), (Resources, "resources")):
                validate_setting(model, getattr(entry, part), lambda found, at=(*keys, part): (*at, *found))
    except SettingError as error:
        raise error.named(lambda _: path) from None
    runtime.read_from(path)
    return runtime


def _entries(runtime: RuntimeConfig) -> Iterator[tuple[Keys, RuntimeEntry]]:
    """(where it is, entry) of every entry; SettingError for a stage that does not exist."""
    yield ("defaults",), runtime.defaults
    tables = [(("stages",), runtime.stages, STAGES)]
    tables += [(("models", model), stages, {*STAGES, EVERY_STAGE}) for model, stages in runtime.models.items()]
    for keys, stages, known in tables:
        for name, entry in stages.items():
            if name not in known:
                raise SettingError.at(*keys, problem=unknown("stage", name, known))
            yield (*keys, name), entry


def merged_settings(runtime: RuntimeConfig, stage: str, model: str) -> tuple[StageRuntime, Resources]:
    """Settings and resources of one stage for one model (its slug): defaults, stage, model, model and stage.

    UserError if a job would use more GPUs than it requests, or if its memory limits contradict each other.
    """
    by_model = runtime.models.get(model, {})
    entries = [runtime.defaults, runtime.stages.get(stage), by_model.get(EVERY_STAGE), by_model.get(stage)]
    settings: dict[str, Any] = {}
    resources: dict[str, Any] = {}
    for entry in entries:
        if entry is not None:
            settings |= entry.settings
            resources |= entry.resources
    runtime_of_stage, needs = StageRuntime.model_validate(settings), Resources.model_validate(resources)
    if "grader_processes" not in settings:
        sharing = runtime_of_stage.processes if stage == "train" else 1
        runtime_of_stage = runtime_of_stage.model_copy(update={"grader_processes": max(1, needs.cpus // sharing)})
    used = runtime_of_stage.gpus_used(stage)
    if used > needs.gpus:
        raise UserError(
            f"{runtime.file}: {stage} of {model or 'every model'} uses {used} GPUs (processes, "
            f"tensor_parallel) but requests {needs.gpus}: set its resources.gpus to {used}."
        )
    engines = runtime_of_stage.processes / runtime_of_stage.tensor_parallel
    if stage == "train" and runtime_of_stage.processes > 1 and not engines.is_integer():
        raise UserError(
            f"{runtime.file}: train of {model or 'every model'}: {runtime_of_stage.processes} training processes "
            f"cannot share engines of tensor_parallel = {runtime_of_stage.tensor_parallel} GPUs: set `processes` to a "
            "multiple of it."
        )
    if needs.max_mem_mb is not None and needs.max_mem_mb < needs.mem_mb:
        raise UserError(
            f"{runtime.file}: {stage} of {model or 'every model'}: max_mem_mb ({needs.max_mem_mb}) is below "
            f"mem_mb ({needs.mem_mb}): raise it or leave it out."
        )
    return runtime_of_stage, needs


def check_models(runtime: RuntimeConfig, path: str, models: Iterable[str]) -> None:
    """UserError if the file names a model (slug) that is not among these, or if what a model's job gets contradicts."""
    models = set(models)
    for name in runtime.models:
        if name not in models:
            raise UserError(f"{path}: `models`: {unknown('model', name, models)}")
    for model in sorted(models):
        for stage in STAGES:
            merged_settings(runtime, stage, model)
