"""Experiments as they are run: recipe and overrides merged, coverage sweeps spread out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import product
from typing import Any

from pydantic import ValidationError

from selfdistill.artifacts.source_digest import outside_digest
from selfdistill.plan.inheritance import inherit
from selfdistill.plan.settings import depth_of, validate_setting
from selfdistill.schema.common import Grader
from selfdistill.schema.config import Config, ExperimentEntry, ModelEntry, TrainEntry
from selfdistill.schema.errors import Keys, SettingError, UserError, setting_problems, shown, unknown
from selfdistill.schema.methods import Method, ModelDefaults, method_class
from selfdistill.schema.shared import EvaluationFields, GradingFields, GroupFields, TrainingFields
from selfdistill.schema.stages import TrainSpec
from selfdistill.schema.training import OnPolicy, TrainingEvaluation


@dataclass(frozen=True)
class Experiment:
    """One experiment. `distinct` is its task coverage (None: the whole data set), `swept_from` the experiment whose
    coverage sweep it belongs to, `subset` how many problems are sampled from the data set (None: all)."""

    name: str
    entry: ExperimentEntry
    model: ModelEntry
    train: TrainEntry
    method: Method
    reward: Grader
    dataset: str
    seeds: tuple[int, ...]
    distinct: int | None = None
    subset: int | None = None
    evaluation: TrainingEvaluation | None = None
    coverage_seed: int = 0
    swept_from: str | None = None
    #: Of an experiment that a `sweep` makes: the swept one, and the values of its settings.
    tuned_from: str | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def method_code(self) -> str | None:
        """Digest of the code of a method from outside the package."""
        try:
            return outside_digest(self.method.outside_modules)
        except FileNotFoundError as error:
            raise UserError(f"method {self.method.name}: there is no Python source of {error}.") from None

    def train_spec(self, seed: int) -> TrainSpec:
        """The spec of one run. The last step has a checkpoint, so an interval beyond it means the last step."""
        train, on_policy = self.train, None
        if self.method.samples:
            on_policy = OnPolicy(
                sampling=self.model.training_sampling,
                grader=self.reward,
                engine=self.model.engine,
                kv_cache_dtype=self.model.kv_cache_dtype,
                **train.values_of(GroupFields),
            )
        return TrainSpec(
            method=self.method,
            method_code=self.method_code,
            seed=seed,
            on_policy=on_policy,
            precision=self.model.precision,
            thinking=self.model.thinking,
            thinking_marks=self.model.thinking_marks,
            evaluation=self.evaluation,
            **train.values_of(TrainingFields) | {"checkpoint_every": min(train.checkpoint_every, train.steps)},
        )

    def evaluated_steps(self) -> list[int]:
        """Checkpoints that are evaluated, base excluded."""
        available = self.train_spec(0).checkpoint_steps
        chosen = self.entry.evaluate
        if chosen == "last":
            return available[-1:]
        if chosen == "all":
            return available
        missing = sorted(set(chosen) - set(available))
        if missing:
            problem = f"no checkpoint at step {missing[0]}. There are: {', '.join(map(str, available))}."
            raise SettingError.at("experiments", self.name, "evaluate", problem=problem)
        return sorted(chosen)


def resolve(config: Config) -> dict[str, Experiment]:
    """All experiments by name, those of sweeps and coverage sweeps (`NAME_d8`) included."""
    experiments: dict[str, Experiment] = {}
    for name, entry in config.experiments.items():
        whole = _resolve_one(config, name, entry)
        experiments[name] = whole
        experiments |= _tuned(config, name, entry)
        for distinct in entry.coverage.distinct if entry.coverage else ():
            variant = f"{name}_d{distinct}"
            if variant in config.experiments:
                raise SettingError.at("experiments", variant, problem=f"collides with the coverage sweep of {name}.")
            given = entry.coverage.datasets.get(distinct)
            experiments[variant] = replace(
                whole,
                name=variant,
                dataset=given or entry.dataset,
                reward=config.datasets[given or entry.dataset].reward or whole.model.reward,
                distinct=distinct,
                subset=None if given else distinct,
                coverage_seed=entry.coverage.seed,
                seeds=tuple(entry.coverage.seeds),
                swept_from=name,
            )
    return experiments


def _tuned(config: Config, name: str, entry: ExperimentEntry) -> dict[str, Experiment]:
    """The experiment with each combination of the values of its `sweep`."""
    tuned = {}
    for values in product(*entry.sweep.values()) if entry.sweep else ():
        setting = dict(zip(entry.sweep, values, strict=True))
        parts = (f"{path.rpartition('.')[2]}_{value}" for path, value in setting.items())
        variant = "_".join([name, *(re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in parts)])
        if variant in config.experiments or variant in tuned:
            raise SettingError.at("experiments", name, "sweep", problem=f"makes the experiment {variant} twice.")
        overrides = reduce(inherit, (_nested(path, value) for path, value in setting.items()), entry.overrides)
        changed = entry.model_copy(update={"overrides": overrides, "coverage": None, "sweep": {}})
        try:
            experiment = _resolve_one(config, variant, changed)
        except SettingError as error:
            given = ", ".join(f"{key} = {shown(value)}" for key, value in setting.items())
            raise SettingError.at("experiments", name, "sweep", problem=f"with {given}: {error}") from None
        tuned[variant] = replace(experiment, tuned_from=name, setting=setting)
    return tuned


def _nested(path: str, value: Any) -> dict[str, Any]:
    """`optimiser.learning_rate` and a value as nested mappings."""
    return reduce(lambda inner, key: {key: inner}, reversed(path.split(".")), value)


def get(experiments: dict[str, Experiment], name: str) -> Experiment:
    if name not in experiments:
        raise unknown("experiment", name, experiments)
    return experiments[name]


def _resolve_one(config: Config, name: str, entry: ExperimentEntry) -> Experiment:
    model = config.models[entry.model]
    merged = inherit(config.recipes[entry.recipe].model_dump(exclude={"like"}), entry.overrides)

    def place(keys: Keys) -> Keys:
        """Where a setting of the merged recipe comes from: the experiment's overrides, or the recipe."""
        is_override = depth_of(keys, entry.overrides) >= depth_of(keys, config.recipes[entry.recipe].model_dump())
        of_experiment = bool(entry.overrides) and is_override
        return ("experiments", name, "overrides", *keys) if of_experiment else ("recipes", entry.recipe, *keys)

    train = validate_setting(TrainEntry, merged, place)
    method = _method(config, model, train, place)
    _check_cache_type(entry.model, model, train, method, place)
    experiment = Experiment(
        name=name,
        entry=entry,
        model=model,
        train=train,
        method=method,
        reward=config.datasets[entry.dataset].reward or model.reward,
        dataset=entry.dataset,
        seeds=tuple(entry.seeds),
        evaluation=_training_evaluation(config, model, train, place),
    )
    if method.trains_on and entry.sft is None:
        problem = f"is missing: method {method.name} needs to know which completions it learns from."
        raise SettingError.at("experiments", name, "sft", problem=problem)
    try:
        experiment.train_spec(0)
    except ValidationError as error:
        of_model = ("models", entry.model, "training_sampling")
        to_file = place if error.title == TrainSpec.__name__ else lambda _: of_model
        raise SettingError(setting_problems(error, TrainSpec, place=to_file)) from None
    experiment.evaluated_steps()
    _check_room(config, model, entry.benchmarks)
    return experiment


def _check_cache_type(
    name: str, model: ModelEntry, train: TrainEntry, method: Method, place: Callable[[Keys], Keys]
) -> None:
    """A cache of eight bits samples from another distribution than the policy's; SettingError without a correction."""
    if method.samples and model.kv_cache_dtype != "auto" and train.correction_clip is None:
        problem = (
            f"is null, but model {name} has kv_cache_dtype {model.kv_cache_dtype}: what is sampled then differs "
            "from the policy, which only the correction makes up for. Set it (2.0), or kv_cache_dtype: auto."
        )
        raise SettingError.at(*place(("correction_clip",)), problem=problem)


def _check_room(config: Config, model: ModelEntry, benchmarks: Iterable[str]) -> None:
    """A model must have room for the longest completions of its benchmarks; SettingError."""
    for name in benchmarks:
        try:
            model.check_room("max_tokens", config.benchmarks[name].sampling(model.evaluation_sampling).max_tokens)
        except ValueError as error:
            raise SettingError.at("benchmarks", name, "max_tokens", problem=f"{error}.") from None


def _method(config: Config, model: ModelEntry, train: TrainEntry, place: Callable[[Keys], Keys]) -> Method:
    """The method's options, with the model's templates and limits filled in (docs/method.md 8.4)."""
    if "name" not in train.method:
        raise SettingError.at(*place(("method", "name")), problem="is missing.")
    try:
        settings = method_class(str(train.method["name"]))
    except UserError as error:
        raise SettingError.at(*place(("method", "name")), problem=error) from None
    room = model.max_positions - model.training_sampling.max_tokens
    defaults = settings.defaults(ModelDefaults(config.reprompts[model.reprompt], room))
    return validate_setting(settings, defaults | train.method, lambda keys: place(("method", *keys)))


def _training_evaluation(
    config: Config, model: ModelEntry, train: TrainEntry, place: Callable[[Keys], Keys]
) -> TrainingEvaluation | None:
    """What is looked at while training: a benchmark's settings, with the recipe's number of problems and samples."""
    entry = train.evaluation
    if entry is None:
        return None
    if entry.benchmark not in config.benchmarks:
        problem = unknown("benchmark", entry.benchmark, config.benchmarks)
        raise SettingError.at(*place(("evaluation", "benchmark")), problem=problem)
    _check_room(config, model, [entry.benchmark])
    benchmark = config.benchmarks[entry.benchmark]
    return TrainingEvaluation(
        sampling=benchmark.sampling(model.evaluation_sampling),
        engine=model.engine,
        kv_cache_dtype=model.kv_cache_dtype,
        **entry.values_of(EvaluationFields) | {"every_steps": min(entry.every_steps, train.steps)},
        **benchmark.values_of(GradingFields),
    )
