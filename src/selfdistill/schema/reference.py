"""Tables of settings and metrics for the docs, generated from the descriptions of the models.

A page marks where a table stands, and `python -m selfdistill.schema.export` fills it in:

    <!-- generated: recipe -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from selfdistill.schema import common, config, methods, runtime, shown, source_entries, sources, toy
from selfdistill.schema.assets import AssetEntry, LocalAsset
from selfdistill.schema.errors import UserError
from selfdistill.schema.metrics import METRICS

#: The settings that have a table of their own, by its name; other nested settings are rows of the table they are in.
TABLES: dict[str, type[BaseModel]] = {
    "config": config.Config,
    "dataset": config.DatasetEntry,
    "source-asset": source_entries.AssetFile,
    "source-load_dataset": source_entries.LoadedEntry,
    "fields": sources.FieldMap,
    "source-toy": sources.ToySource,
    "source-reasoning_gym": sources.ReasoningGymSource,
    "source-livecodebench": source_entries.LiveCodeBenchFile,
    "model": config.ModelEntry,
    "example": common.Example,
    "pretrain": config.PretrainEntry,
    "architecture": toy.ToyArchitecture,
    "mixture": toy.ToyMixture,
    "chains": toy.ChainMixture,
    "sampling": common.Sampling,
    "reprompt": common.RepromptTemplate,
    "thinking-marks": common.ThinkingMarks,
    "grader-math": common.MathGraderEntry,
    "grader-choice": common.ChoiceGrader,
    "grader-code": common.CodeGrader,
    "grader-python": common.PythonGraderEntry,
    "benchmark": config.BenchmarkEntry,
    "variant": config.VariantEntry,
    "recipe": config.TrainEntry,
    "optimiser": common.Optimiser,
    "method-grpo": methods.Grpo,
    "method-sdpo": methods.Sdpo,
    "method-sft": methods.Sft,
    "experiment": config.ExperimentEntry,
    "richness": shown.RichnessEntry,
    "diagnostics": shown.DiagnosticsEntry,
    "leaderboard": shown.CuresEntry,
    "report": shown.ReportEntry,
    "runtime-file": runtime.RuntimeConfig,
    "runtime-entry": runtime.RuntimeEntry,
    "runtime": runtime.StageRuntime,
    "resources": runtime.Resources,
    "asset": AssetEntry,
    "local-asset": LocalAsset,
}
#: Defaults that depend on other settings.
_DEPENDENT = {
    (methods.Sdpo, "reprompt"): "the model's `reprompt`",
    (methods.Sdpo, "max_reprompt_tokens"): "the smaller of 22528 and `max_positions` minus the longest completion",
}
_BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TYPES = {str: "text", bool: "`true`, `false`", int: "integer", float: "number", type(None): "`null`"}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}


def table(name: str) -> str:
    """One generated table as Markdown; UserError for a name that no table has."""
    if name == "metrics":
        rows = [(f"`{metric.name}`", metric.written_by, metric.description) for metric in METRICS]
        return _markdown(("metric", "written by", "meaning"), rows)
    if name == "cures":
        return _markdown(("method", "setting", "values", "default", "meaning"), _cures())
    if name not in TABLES:
        raise UserError(f"there is no generated table `{name}`. There are: metrics, cures, {', '.join(TABLES)}.")
    return _markdown(("setting", "values", "default", "meaning"), _rows(TABLES[name]))


def filled(page: str) -> str:
    """A page with every generated block as it should be."""
    return _BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}{block[3]}", page)


def outdated(folder: Path) -> list[str]:
    """Pages of a folder whose generated blocks are out of date, one line each."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    return [f"{path.name}: a generated table is out of date" for path, page in pages.items() if filled(page) != page]


def fill(folder: Path) -> None:
    """Bring the generated blocks of a folder's pages up to date."""
    for path in folder.glob("*.md"):
        page = path.read_text(encoding="utf-8")
        if filled(page) != page:
            path.write_text(filled(page), encoding="utf-8")


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cures() -> Iterator[tuple[str, str, str, str, str]]:
    """Of the shipped methods without a table of their own: the settings that they add, or give another default."""
    shared = {**methods.PolicySettings.model_fields, **methods.DemonstrationSettings.model_fields}
    for model in methods.shipped_methods():
        if model in TABLES.values():
            continue
        for name, field in model.model_fields.items():
            if name != "name" and (name not in shared or field.default != shared[name].default):
                meaning = field.description or _kind(field)
                yield f"`{model.model_fields['name'].default}`", f"`{name}`", _values(field), _default(field), meaning


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    own_first = sorted(model.model_fields.items(), key=lambda item: item[0] not in inspect.get_annotations(model))
    for name, field in own_first:
        nested = _nested(field)
        if nested is None or _is_optional(field.annotation):
            default = _DEPENDENT.get((model, name)) or _default(field)
            yield f"`{prefix}{name}`", _values(field), default, field.description or _kind(field)
        if nested is not None:
            yield from _rows(nested, f"{prefix}{name}.")


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """The settings in a field whose rows belong into the same table."""
    found = [part for part in _parts(field.annotation) if _is_model(part)]
    return found[0] if len(found) == 1 and found[0] not in TABLES.values() else None


def _kind(field: FieldInfo) -> str:
    """What is said of `kind` and `name`, which choose between several tables."""
    return f"Says that these are the settings of `{field.default}`."


def _values(field: FieldInfo) -> str:
    bounds = [(word, getattr(m, short)) for m in field.metadata for short, word in _BOUNDS.items() if hasattr(m, short)]
    shown = [_shown(part) for part in _parts(field.annotation)]
    if bounds:
        shown[0] += " " + " ".join(f"{word} {value:g}" for word, value in bounds)
    return ", ".join(dict.fromkeys(shown))


def _shown(annotation: Any) -> str:
    annotation = _plain(annotation)
    if _is_model(annotation):
        name = next((name for name, model in TABLES.items() if model is annotation), None)
        return f"[{name.split('-')[-1]}](#{name})" if name else "settings"
    origin = get_origin(annotation) or annotation
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (list, tuple, dict):
        inner = _parts(get_args(annotation)[-1])
        of = f" of {_shown(inner[0])}" if len(inner) == 1 and inner[0] is not Any else ""
        return f"{'mapping' if origin is dict else 'list'}{of}"
    return _TYPES[origin]


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of a union; a single type alone."""
    annotation = _plain(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for alternative in get_args(annotation) for part in _parts(alternative)]
    return [annotation]


def _plain(annotation: Any) -> Any:
    """A type without its annotations."""
    return _plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_optional(annotation: Any) -> bool:
    return type(None) in _parts(annotation)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.default
    if isinstance(value, BaseModel):
        given = {
            name: getattr(value, name) for name in type(value).model_fields if name in {"kind", *value.model_fields_set}
        }
        return f"`{{{', '.join(f'{name}: {part}' for name, part in given.items())}}}`" if given else "its defaults"
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"
