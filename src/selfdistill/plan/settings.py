"""Reading the three files a plan is made of, and every cross-reference between them checked.

Errors name the file, the field, the value and the way out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from selfdistill.schema.base import Model
from selfdistill.schema.config import Config
from selfdistill.schema.errors import UserError, explain_validation, unknown
from selfdistill.schema.runtime import Resources, RuntimeConfig, StageRuntime
from selfdistill.schema.stages import STAGES
from selfdistill.schema.yaml_file import read_yaml

CONFIG_FILE = "config/config.yaml"

Loaded = TypeVar("Loaded", bound=Model)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Deep merge, as Snakemake merges config files: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def validate(model: type[Loaded], data: Any, where: str) -> Loaded:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain_validation(error, model, where) from None


def load_config(data: dict[str, Any], where: str = CONFIG_FILE) -> Config:
    """Validate the config (as Snakemake merged it) and every name in it that points elsewhere."""
    config = validate(Config, data, where)
    for name, entry in config.datasets.items():
        _known("data set", entry.exclude, config.datasets, f"{where}: datasets.{name}.exclude")
        _known("data set", entry.compare, config.datasets, f"{where}: datasets.{name}.compare")
        if entry.question is not None:
            _known("question template", [entry.question], config.questions, f"{where}: datasets.{name}.question")
    for name, entry in config.models.items():
        _known("question template", [entry.question], config.questions, f"{where}: models.{name}.question")
        _known("re-prompt template", [entry.reprompt], config.reprompts, f"{where}: models.{name}.reprompt")
        _known("re-prompt template", [entry.analysis_reprompt], config.reprompts, f"{where}: models.{name}")
        if entry.pretrain:
            _known("data set", entry.pretrain.exclude, config.datasets, f"{where}: models.{name}.pretrain.exclude")
    for name, template in config.questions.items():
        if "{question}" not in template:
            raise UserError(f"{where}: questions.{name}: {template!r} lacks the slot {{question}}.")
    for name, entry in config.benchmarks.items():
        _known("data set", [entry.dataset], config.datasets, f"{where}: benchmarks.{name}.dataset")
    for name, entry in config.experiments.items():
        at = f"{where}: experiments.{name}"
        _known("model", [entry.model], config.models, f"{at}.model")
        _known("recipe", [entry.recipe], config.recipes, f"{at}.recipe")
        _known("data set", [entry.dataset], config.datasets, f"{at}.dataset")
        _known("benchmark", entry.benchmarks, config.benchmarks, f"{at}.benchmarks")
        if entry.coverage:
            _known("data set", entry.coverage.datasets.values(), config.datasets, f"{at}.coverage.datasets")
    for name, entry in config.richness.items():
        _known("model", [name], config.models, f"{where}: richness")
        _known("data set", [entry.dataset], config.datasets, f"{where}: richness.{name}.dataset")
    return config


def load_runtime(path: str) -> RuntimeConfig:
    """The runtime file, with every entry checked by itself: its settings, its resources, the names of its stages."""
    runtime = validate(RuntimeConfig, read_yaml(Path(path)), path)
    entries = {"defaults": runtime.defaults}
    for name, entry in runtime.stages.items():
        _known("stage", [name], STAGES, f"{path}: stages")
        entries[f"stages.{name}"] = entry
    for model, stages in runtime.models.items():
        for name, entry in stages.items():
            _known("stage", [name], {*STAGES, "all"}, f"{path}: models.{model}")
            entries[f"models.{model}.{name}"] = entry
    for at, entry in entries.items():
        validate(StageRuntime, entry.settings, f"{path}: {at}.settings")
        validate(Resources, entry.resources, f"{path}: {at}.resources")
    return runtime


def _known(kind: str, names: Any, known: Any, where: str) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: {unknown(kind, name, known)}")
