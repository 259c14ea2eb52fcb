"""What a training method says about itself, and the register in which planning and training find it.

A method is two classes. Its settings, a subclass of `MethodSettings`, answer what planning, `estimate` and the report
ask, without torch. Its training class computes the loss (training/methods/) and is loaded by name in a training
process. `register_method` ties the two together; docs/configuration.md 10 shows a method of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import core_schema

from selfdistill.schema.base import Model, Since
from selfdistill.schema.common import RepromptTemplate
from selfdistill.schema.errors import UserError, unknown
from selfdistill.schema.outside import load_module

Aggregation = Literal["sequence_mean", "token_mean", "unmasked_sequence_mean"]
#: The two kinds of given completions: sampled with a solution in the prompt, or without.
Arm = Literal["guided", "unguided"]

_PACKAGE = __name__.partition(".")[0]
_METHODS: dict[str, type[MethodSettings]] = {}


class Teacher(Model):
    """Who teaches: the network with the context, fixed, moving, live or a mixture (docs/method.md 4)."""

    kind: Literal["fixed", "ema", "snapshot", "live", "trust_region"] = Field(
        "fixed", description="fixed is the initial policy."
    )
    rate: float = Field(
        0.05, gt=0, le=1, description="ema: rate per training step; trust_region: the policy's share of the logits."
    )
    every: Annotated[int, Since(10)] = Field(
        10, gt=0, description="snapshot: training steps after which it becomes the policy of that moment."
    )

    @property
    def moves(self) -> bool:
        """Whether it has weights of its own that change."""
        return self.kind in ("ema", "snapshot")


@dataclass(frozen=True)
class ModelDefaults:
    """What a method may take from its model: the template that shows a demonstration, and the longest prompt in tokens
    that leaves room for a completion."""

    reprompt: RepromptTemplate
    max_prompt_tokens: int


class MethodSettings(Model):
    """Base of the settings of all methods. The properties are what the rest of the package asks; the defaults describe
    a method that learns from its own graded completions and has no second network."""

    name: str = Field(description="Name in recipes; that of a method from outside is `module.name`.")
    aggregation: Aggregation = Field("sequence_mean", description="How token losses become one number.")

    #: The training class as `module:Class`; set by `register_method`.
    training: ClassVar[str]
    #: Whether the second network reads more than the student does: a teacher. Otherwise it is a reference.
    shows_context: ClassVar[bool] = False
    #: The loss in one line, for model cards.
    formula: ClassVar[str] = "see its settings and docs/method.md 18"

    @property
    def variant(self) -> str | None:
        """What tells runs of one method apart: part of the slug, and the column `context` of tables."""
        return None

    @property
    def label(self) -> str:
        """The name in figures."""
        words = [self.name.rpartition(".")[2], *([self.variant] if self.variant else [])]
        return " ".join(words).replace("_", " ").upper()

    @property
    def trains_on(self) -> Arm | None:
        """The given completions it learns from; None for a method that samples its own."""
        return None

    @property
    def samples(self) -> bool:
        """Whether it learns from completions that it samples and has graded."""
        return self.trains_on is None

    @property
    def second_network(self) -> Teacher | None:
        """The network whose logits the loss needs beside the policy's, or None."""
        return None

    def regenerated(self, group_size: int) -> int:
        """Completions per group, at most, that a step samples once more with a demonstration in the prompt."""
        return 0

    def longest_sampled(self, prompt_tokens: int) -> int:
        """Longest prompt that the policy completes in a step, given that of the data."""
        return prompt_tokens

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        """Longest prompt of each forward pass of the second network, given the student's longest prompt and completion.

        One entry per pass: this is what a step costs beyond sampling and updating.
        """
        return () if self.second_network is None else (prompt_tokens,)

    @classmethod
    def defaults(cls, model: ModelDefaults) -> dict[str, Any]:
        """Settings that come from the model where the recipe does not give them."""
        return {}

    @property
    def outside_modules(self) -> tuple[str, ...]:
        """The modules that define a method from outside this package; empty for a shipped one."""
        modules = (type(self).__module__, self.training.partition(":")[0])
        return tuple(dict.fromkeys(name for name in modules if name.partition(".")[0] != _PACKAGE))


Settings = TypeVar("Settings", bound=MethodSettings)


def register_method(training: str) -> Callable[[type[Settings]], type[Settings]]:
    """Class decorator: recipes find the settings by their name; `training` is the training class, `module:Class`.

    Raises TypeError for other classes, and for a name that no job could find: one that is taken, or one from outside
    that is not `module.name`.
    """

    def register(settings: type[Settings]) -> type[Settings]:
        if not issubclass(settings, MethodSettings):
            raise TypeError(f"{settings.__qualname__} is not a subclass of MethodSettings")
        name, module = settings.model_fields["name"].default, settings.__module__
        if module.partition(".")[0] != _PACKAGE and str(name).rpartition(".")[0] != module:
            raise TypeError(f"{settings.__qualname__}: its name must start with its module: `{module}.` (it is {name})")
        known = _METHODS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (module, settings.__qualname__):
            raise TypeError(f"{settings.__qualname__}: the name {name} is taken by {known.__module__}")
        settings.training = training
        _METHODS[name] = settings
        return settings

    return register


def shipped_methods() -> tuple[type[MethodSettings], ...]:
    """The settings classes of this package, in the order of registration."""
    return tuple(m for m in _METHODS.values() if m.__module__.partition(".")[0] == _PACKAGE)


def method_class(name: str) -> type[MethodSettings]:
    """The settings class of a name; `module.name` is looked for in that module.

    Raises UserError for a name under which nothing is registered, and for a module that cannot be imported.
    """
    if name not in _METHODS and "." in name:
        load_module(name.rpartition(".")[0], f"method `{name}`")
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]


def method_settings(value: Any) -> MethodSettings:
    """Validate settings as those of the method that their `name` says."""
    if isinstance(value, MethodSettings):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise UserError(f"method: `name` is missing. Known: {', '.join(sorted(_METHODS))}.")
    return method_class(value["name"]).model_validate(value)


def method_title(spec: dict[str, Any]) -> str:
    """`name (variant)` of a method in a spec on disk; the name alone where the method no longer exists here."""
    try:
        variant = method_settings(spec).variant
    except (UserError, ValidationError):
        variant = None
    return f"{spec['name']} ({variant})" if variant else spec["name"]


class _ByName:
    """Pydantic's view of a field that holds the settings of any method; its JSON schema lists the shipped ones."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        listed = core_schema.tagged_union_schema(
            {m.model_fields["name"].default: handler.generate_schema(m) for m in shipped_methods()},
            discriminator="name",
        )
        return core_schema.no_info_plain_validator_function(
            method_settings,
            json_schema_input_schema=listed,
            serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True),
        )


def _dump(settings: MethodSettings, info: Any) -> dict[str, Any]:
    return settings.model_dump(mode=info.mode)


Method = Annotated[MethodSettings, _ByName()]
