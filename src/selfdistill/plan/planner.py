"""Config -> nodes. Every artifact of the study is described in this file, from data to epistemic counts."""

from __future__ import annotations

from functools import cache
from typing import Any

from selfdistill.artifacts.store import slugify
from selfdistill.epistemic import in_canonical_order
from selfdistill.plan.experiments import Experiment, resolve
from selfdistill.plan.graph import Node
from selfdistill.plan.own_graders import with_code
from selfdistill.schema.assets import AssetLock
from selfdistill.schema.common import AssetPin, Grader
from selfdistill.schema.config import Config, ModelEntry
from selfdistill.schema.errors import SettingError, UserError
from selfdistill.schema.shared import (
    ChatFields,
    DatasetFields,
    DiagnosticsFields,
    GradingFields,
    InterventionFields,
    PretrainFields,
    SolveRateFields,
)
from selfdistill.schema.source_entries import AssetFile, LiveCodeBenchFile, LoadedEntry
from selfdistill.schema.sources import (
    FileFields,
    FileSource,
    LiveCodeBenchFields,
    LiveCodeBenchSource,
    LoadedFields,
    LoadedSource,
)  # fmt: skip
from selfdistill.schema.stages import (
    ContextKind,
    ContextsSpec,
    DatasetSpec,
    DiagnosticsSpec,
    EpistemicsSpec,
    EvaluateSpec,
    ModelSpec,
    PretrainSpec,
    PromptsSpec,
    RolloutsSpec,
    SampleSpec,
    SelectSpec,
    SftDataSpec,
)  # fmt: skip


class Planner:
    """Builds nodes on demand and shares them: two experiments with the same rollouts get the same node."""

    def __init__(self, config: Config, assets: AssetLock) -> None:
        self.config = with_code(config)
        self.assets = assets
        self.experiments = resolve(self.config)
        for method in ("dataset", "model", "problems", "prompts", "benchmark_prompts", "sft_data", "train"):
            setattr(self, method, cache(getattr(self, method)))

    def dataset(self, name: str) -> Node:
        entry = self.config.datasets[name]
        source = entry.source
        if isinstance(source, AssetFile):
            source = self._file_source(name, source)
        if isinstance(source, LoadedEntry):
            pin = self._loaded_pin(source, "datasets", name, "source")
            source = LoadedSource(pin=pin, **source.values_of(LoadedFields))
        if isinstance(source, LiveCodeBenchFile):
            pin = self._pin(source, "datasets", name, "source")
            source = LiveCodeBenchSource(pin=pin, **source.values_of(LiveCodeBenchFields))
        spec = DatasetSpec(source=source, near=entry.near if entry.compare else None, **entry.values_of(DatasetFields))
        return Node(spec, self._datasets("exclude", entry.exclude) | self._datasets("compare", entry.compare))

    def _file_source(self, dataset: str, entry: AssetFile) -> FileSource:
        """A file of an asset in the lock; or a folder of the user's own, pinned as a whole, and its part."""
        is_own = entry.asset not in self.assets.assets
        if entry.split is not None and not is_own:
            problem = f"`{entry.asset}` is pinned file by file: choose one with `file:`."
            raise SettingError.at("datasets", dataset, "source", "split", problem=problem)
        return FileSource(
            pin=self._pin(entry, "datasets", dataset, "source"),
            within=entry.file if is_own else None,
            split=entry.split,
            **entry.values_of(FileFields),
        )

    def _loaded_pin(self, entry: LoadedEntry, *keys: str) -> AssetPin:
        """A commit of the hub, or the digest of a folder or file of the user's own."""
        if entry.asset is None:
            return AssetPin(repo=entry.repo, revision=entry.revision)
        known = self.assets.assets.get(entry.asset)
        if known is None or not known.is_resolved:
            return self._pin(entry, *keys)
        if known.source != "hub":
            problem = f"`{entry.asset}` is not a repository of the hub: read it with `kind: asset`."
            raise SettingError.at(*keys, "asset", problem=problem)
        return AssetPin(repo=known.repo, revision=known.revision)

    def model(self, name: str) -> Node:
        entry = self.config.models[name]
        if entry.asset is not None:
            chat = {"chat_template": entry.chat_template, "chat_date": entry.chat_date}
            return Node(ModelSpec(pin=self._pin(entry, "models", name), **chat), {})
        made = entry.pretrain
        return Node(PretrainSpec(**made.values_of(PretrainFields)), self._datasets("exclude", made.exclude))

    def _pin(self, entry: AssetFile | LoadedEntry | LiveCodeBenchFile | ModelEntry, *keys: str) -> AssetPin:
        """What identifies the asset (and its file) that an entry of the config names; SettingError."""
        try:
            return self.assets.pin(str(entry.asset), getattr(entry, "file", None))
        except UserError as error:
            raise SettingError.at(*keys, "asset", problem=error) from None

    def model_slugs(self) -> set[str]:
        """Names that config/runtime.yaml may use: of the config's base models, and of every model in the asset lock.

        A model that is not pinned yet is known by its repository's name. Lock entries that the config does not use
        count as well, so that an overlay may exchange a model's asset without another runtime.yaml.
        """
        locked = [asset for asset in self.assets.assets.values() if asset.kind == "model"]
        slugs = {slugify(asset.repo.rsplit("/", 1)[-1]) for asset in locked}
        for name, entry in self.config.models.items():
            known = self.assets.assets.get(entry.asset or "")
            if known is None or known.is_resolved:
                slugs.add(self.model(name).slug)
        return slugs

    def _datasets(self, role: str, names: list[str]) -> dict[str, Node]:
        """Data sets as the inputs `role.0`, `role.1`, ...: each once, in an order that does not depend on the names."""
        nodes = {node.id: node for node in map(self.dataset, names)}
        ordered = sorted(nodes.values(), key=lambda node: (node.slug, node.key))
        return {f"{role}.{index}": node for index, node in enumerate(ordered)}

    def problems(self, dataset: str, distinct: int | None, seed: int) -> Node:
        """Task coverage: the whole data set, or n distinct problems of it."""
        whole = self.dataset(dataset)
        if distinct is None:
            return whole
        return Node(SampleSpec(distinct=distinct, repeats=1, seed=seed), {"problems": whole})

    def prompts(self, model: str, problems: Node, dataset: str, system: str | None = None) -> Node:
        """Problems of a data set as chat prompts; the data set may word its questions otherwise than the model does.

        `system` takes the place of the model's system message.
        """
        entry = self.config.models[model]
        spec = PromptsSpec(
            question_template=self.config.questions[self.config.datasets[dataset].question or entry.question],
            **entry.values_of(ChatFields) | ({"system": system} if system else {}),
        )
        return Node(spec, {"model": self.model(model), "problems": problems})

    def benchmark_prompts(self, model: str, benchmark: str) -> Node:
        dataset = self.config.benchmarks[benchmark].dataset
        return self.prompts(model, self.dataset(dataset), dataset)

    def trained_on(self, experiment: Experiment) -> Node:
        """The problems that an experiment is trained on."""
        return self.problems(experiment.dataset, experiment.subset, experiment.coverage_seed)

    def train(self, experiment: str, seed: int) -> Node:
        chosen = self.experiments[experiment]
        model = chosen.entry.model
        inputs = {"model": self.model(model)}
        if chosen.train_spec(seed).on_policy is None:
            inputs["examples"] = self.sft_data(experiment)
        else:
            inputs["prompts"] = self.prompts(model, self.trained_on(chosen), chosen.dataset)
        if chosen.train.evaluation is not None:
            inputs["evaluation_prompts"] = self.benchmark_prompts(model, chosen.train.evaluation.benchmark)
        return Node(chosen.train_spec(seed), inputs)

    def sft_data(self, experiment: str) -> Node:
        """Completions with and without a solution in context, of the same problems (paper, section 4)."""
        chosen = self.experiments[experiment]
        model, source = chosen.entry.model, chosen.entry.sft
        problems = self.problems(chosen.dataset, chosen.subset or source.distinct, chosen.coverage_seed)
        prompts = self.prompts(model, problems, chosen.dataset)
        shared = {"samples": source.samples, "reward": self._reward(model, chosen.dataset)}
        unguided = self._rollouts(model, prompts, seed=source.seed, **shared)
        contexts = self._contexts(model, unguided, kind=source.context, instruction=None, seed=0)
        guided = self._rollouts(model, prompts, seed=source.seed + 1, contexts=contexts, **shared)
        rates = {"min_solve_rate": source.min_solve_rate, "max_solve_rate": source.max_solve_rate}
        trained = self.prompts(model, problems, chosen.dataset, source.system) if source.system else prompts
        inputs = {"unguided": unguided, "guided": guided, "prompts": trained}
        return Node(SftDataSpec(limit=source.limit, **rates), inputs)

    def _contexts(self, model: str, rollouts: Node, kind: ContextKind, **settings: Any) -> Node:
        marks = self.config.models[model].thinking_marks if kind == "solution_no_think" else None
        return Node(ContextsSpec(kind=kind, thinking_marks=marks, **settings), {"rollouts": rollouts})

    def _reward(self, model: str, dataset: str) -> Grader:
        """The training reward on a data set, without its limit to the end of a completion."""
        reward = self.config.datasets[dataset].reward or self.config.models[model].reward
        return reward.model_copy(update={"scope_characters": None} if reward.kind == "math" else {})

    def _rollouts(
        self, model: str, prompts: Node, *, samples: int, seed: int, reward: Grader, contexts: Node | None = None
    ) -> Node:
        entry = self.config.models[model]
        room = entry.max_positions - entry.analysis_sampling.max_tokens
        spec = RolloutsSpec(
            step=None,
            samples=samples,
            sampling=entry.analysis_sampling,
            grader=reward,
            engine=entry.engine,
            kv_cache_dtype=entry.kv_cache_dtype,
            seed=seed,
            thinking=entry.thinking,
            reprompt=self.config.reprompts[entry.analysis_reprompt] if contexts else None,
            max_reprompt_tokens=room if contexts else None,
        )
        inputs = {"model": self.model(model), "prompts": prompts}
        return Node(spec, inputs | ({"contexts": contexts} if contexts else {}))

    def richness(self, model: str) -> dict[ContextKind, Node]:
        """Rollouts of the base model under each context, on problems it sometimes solves (paper, section 3)."""
        entry = self.config.richness[model]
        shared = {"samples": entry.samples, "reward": self._reward(model, entry.dataset)}
        pool = self.prompts(model, self.problems(entry.dataset, entry.distinct, entry.seed), entry.dataset)
        unguided = self._rollouts(model, pool, seed=entry.seed, **shared)
        window = SelectSpec(**entry.values_of(SolveRateFields))
        selected = Node(window, {"rollouts": unguided, "problems": pool.inputs["problems"]})
        prompts = self.prompts(model, selected, entry.dataset)

        def under(kind: ContextKind, source: Node) -> Node:
            instruction = entry.concise_instruction if kind == "concise" else None
            contexts = self._contexts(model, source, kind=kind, instruction=instruction, seed=entry.seed)
            return self._rollouts(model, prompts, seed=entry.seed + 1, contexts=contexts, **shared)

        nodes: dict[ContextKind, Node] = {}
        for kind in entry.contexts:
            if kind == "none":
                nodes[kind] = self._rollouts(model, prompts, seed=entry.seed + 1, **shared)
            elif kind == "regenerated":
                nodes[kind] = under(kind, under("solution", unguided))
            else:
                nodes[kind] = under(kind, unguided)
        return nodes

    def evaluation(
        self, model: str, trained: Node | None, steps: list[int], benchmark: str, variant: str | None = None
    ) -> Node:
        """Checkpoints of a run, or the base model, on one benchmark; `variant` changes how they are sampled."""
        entry, settings = self.config.benchmarks[benchmark], self.config.models[model]
        sampling, changes = entry.sampling(settings.evaluation_sampling), {}
        if variant is not None:
            chosen = self.config.variants[variant]
            sampling, changes = chosen.sampling(sampling), chosen.values_of(InterventionFields)
            changes |= {"banned_words": in_canonical_order(chosen.banned_words)}
        spec = EvaluateSpec(
            steps=steps if trained else [0],
            samples=entry.samples,
            sampling=sampling,
            engine=settings.engine,
            kv_cache_dtype=settings.kv_cache_dtype,
            **entry.values_of(GradingFields),
            **changes,
        )
        return Node(spec, {"model": trained or self.model(model), "prompts": self.benchmark_prompts(model, benchmark)})

    def diagnostics(self, model: str, experiment: Experiment, benchmark: str) -> list[tuple[int | None, Node, Node]]:
        """(seed, evaluate node, diagnostics node) of one experiment on one benchmark; seed None is the base model.

        The teacher is the base model that has read one of its own right completions of the problem.
        """
        table, entry = self.config.diagnostics[model], self.config.models[model]
        grader = self.config.benchmarks[benchmark].grader
        prompts = self.benchmark_prompts(model, benchmark)
        solved = self._rollouts(model, prompts, samples=table.samples, seed=table.seed, reward=grader)
        contexts = self._contexts(model, solved, kind=table.context, instruction=None, seed=0)
        return [
            (
                seed,
                evaluation,
                Node(
                    DiagnosticsSpec(
                        steps=evaluation.spec.steps,
                        words=in_canonical_order(self.config.lexicon),
                        reprompt=self.config.reprompts[entry.reprompt],
                        max_reprompt_tokens=entry.max_positions - entry.evaluation_sampling.max_tokens,
                        thinking=entry.thinking,
                        **table.values_of(DiagnosticsFields),
                    ),
                    {"rollouts": evaluation, "base": self.model(model), "contexts": contexts},
                ),
            )
            for seed, evaluation in self.evaluations(experiment, benchmark)
        ]

    def epistemics(self, rollouts: Node) -> Node:
        return Node(EpistemicsSpec(words=in_canonical_order(self.config.lexicon)), {"rollouts": rollouts})

    def evaluations(
        self, experiment: Experiment, benchmark: str, variant: str | None = None
    ) -> list[tuple[int | None, Node]]:
        """(seed, evaluate node) of one experiment on one benchmark; seed None is the base model.

        A variant is evaluated at the last of the evaluated checkpoints.
        """
        model, steps = experiment.entry.model, experiment.evaluated_steps()
        steps = steps if variant is None else steps[-1:]
        rows: list[tuple[int | None, Node]] = [(None, self.evaluation(model, None, [0], benchmark, variant))]
        for seed in experiment.seeds:
            trained = self.train(experiment.name, seed)
            rows.append((seed, self.evaluation(model, trained, steps, benchmark, variant)))
        return rows
