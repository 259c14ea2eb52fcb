"""Settings: merged, validated, and every name in them that points elsewhere checked.

Errors name the file, the field, the value and how to fix it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

from pydantic import ValidationError

from selfdistill.plan.inheritance import with_inherited
from selfdistill.schema.base import Model
from selfdistill.schema.config import Config
from selfdistill.schema.errors import Keys, SettingError, setting_problems, unknown
from selfdistill.schema.stages import STAGES

CONFIG_FILE = "config/config.yaml"

#: Targets of the workflow that are no reports.
RULES = frozenset({*STAGES, "all", "table", "report", "named_report", "report_part"})

Loaded = TypeVar("Loaded", bound=Model)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Deep merge, as Snakemake merges config files: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def validate_setting(model: type[Loaded], data: Any, place: Callable[[Keys], Keys] = lambda keys: keys) -> Loaded:
    """Validate a part of the config; SettingError. `place` says where in the config the keys of the data are."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SettingError(setting_problems(error, model, data, place)) from None


def depth_of(keys: Keys, content: Any) -> int:
    """How many of the keys lead somewhere in nested mappings and lists."""
    for depth, key in enumerate(keys):
        is_list = isinstance(content, list) and isinstance(key, int) and key < len(content)
        if not is_list and not (isinstance(content, Mapping) and key in content):
            return depth
        content = content[key]
    return len(keys)


def load_config(data: Mapping[str, Any]) -> Config:
    """Validate the config (as Snakemake merged it) and every name in it that refers to another entry; SettingError."""
    config = validate_setting(Config, with_inherited(data))
    for name, template in config.questions.items():
        if "{question}" not in template:
            raise SettingError.at("questions", name, problem=f"{template!r} lacks the slot {{question}}.")
    for kind, names, known, keys in _references(config):
        for name in names:
            if name not in known:
                raise SettingError.at(*keys, problem=unknown(kind, name, known))
    for name in config.reports:
        if name in RULES or name in config.experiments:
            kind = "a rule of the workflow" if name in RULES else "an experiment"
            raise SettingError.at("reports", name, problem=f"is the name of {kind} as well: choose another name.")
    _check_cycles(config)
    _check_training_sets(config)
    return config


def _check_cycles(config: Config) -> None:
    """SettingError if a data set excludes itself or is compared with itself, directly or through others."""
    try:
        TopologicalSorter({name: [*data.exclude, *data.compare] for name, data in config.datasets.items()}).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]
        field = "exclude" if cycle[1] in config.datasets[cycle[0]].exclude else "compare"
        problem = f"a data set cannot depend on itself: {' -> '.join(cycle)}."
        raise SettingError.at("datasets", cycle[0], field, problem=problem) from None


def _check_training_sets(config: Config) -> None:
    """SettingError for a benchmark of another distribution (`domain: ood`) that holds the problems trained on."""
    for name, experiment in config.experiments.items():
        trained = config.datasets[experiment.dataset]
        for benchmark in experiment.benchmarks:
            entry = config.benchmarks[benchmark]
            tested = config.datasets[entry.dataset]
            if entry.domain == "ood" and (tested.source, tested.split) == (trained.source, trained.split):
                problem = (
                    f"{benchmark} holds the problems that {name} is trained on ({experiment.dataset}), so it is no "
                    f"benchmark of another distribution. Take another data set, or set `benchmarks.{benchmark}.domain` "
                    "to `in` where the training problems are to be measured."
                )
                raise SettingError.at("experiments", name, "benchmarks", problem=problem)


def _references(config: Config) -> Iterator[tuple[str, Iterable[str], Collection[str], Keys]]:
    """(kind, names, what they may name, where they are) of every field that names entries elsewhere in the config."""
    for name, data in config.datasets.items():
        yield "data set", data.exclude, config.datasets, ("datasets", name, "exclude")
        yield "data set", data.compare, config.datasets, ("datasets", name, "compare")
        named = [data.question] if data.question is not None else []
        yield "question template", named, config.questions, ("datasets", name, "question")
    for name, model in config.models.items():
        yield "question template", [model.question], config.questions, ("models", name, "question")
        for field in ("reprompt", "analysis_reprompt"):
            yield "re-prompt template", [getattr(model, field)], config.reprompts, ("models", name, field)
        excluded = model.pretrain.exclude if model.pretrain else []
        yield "data set", excluded, config.datasets, ("models", name, "pretrain", "exclude")
    for name, benchmark in config.benchmarks.items():
        yield "data set", [benchmark.dataset], config.datasets, ("benchmarks", name, "dataset")
    for name, recipe in config.recipes.items():
        named = [recipe.evaluation.benchmark] if recipe.evaluation else []
        yield "benchmark", named, config.benchmarks, ("recipes", name, "evaluation", "benchmark")
    for name, experiment in config.experiments.items():
        yield "model", [experiment.model], config.models, ("experiments", name, "model")
        yield "recipe", [experiment.recipe], config.recipes, ("experiments", name, "recipe")
        yield "data set", [experiment.dataset], config.datasets, ("experiments", name, "dataset")
        yield "benchmark", experiment.benchmarks, config.benchmarks, ("experiments", name, "benchmarks")
        yield "variant", experiment.variants, config.variants, ("experiments", name, "variants")
        swept = experiment.coverage.datasets.values() if experiment.coverage else []
        yield "data set", swept, config.datasets, ("experiments", name, "coverage", "datasets")
    for name, table in config.diagnostics.items():
        yield "model", [name], config.models, ("diagnostics", name)
        of_model = [e for e, entry in config.experiments.items() if entry.model == name]
        yield f"experiment of {name}", table.experiments, of_model, ("diagnostics", name, "experiments")
        yield "benchmark", table.benchmarks, config.benchmarks, ("diagnostics", name, "benchmarks")
    for name, table in config.richness.items():
        yield "model", [name], config.models, ("richness", name)
        yield "data set", [table.dataset], config.datasets, ("richness", name, "dataset")
