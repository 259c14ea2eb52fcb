"""`like: NAME` in an entry of the config: everything that the entry does not say is as in the entry NAME.

NAME is an entry of the same section, or of `bases`, which holds what only others refer to. Mappings are merged key by
key; one of another `kind` or `name` (a data source, a grader, a method) replaces the whole mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selfdistill.schema.config import Config
from selfdistill.schema.errors import SettingError, unknown

BASES = "bases"
#: Sections whose entries can say `like`.
SECTIONS = ("datasets", "models", "benchmarks", "recipes", "experiments", "richness")


def inherit(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with its changes."""
    merged = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        merged[key] = inherit(below, value) if _is_same_thing(below, value) else value
    return merged


def _is_same_thing(base: Any, changes: Any) -> bool:
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return False
    return all(changes.get(key, base.get(key)) == base.get(key) for key in ("kind", "name"))


def with_inherited(data: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every `like` filled in; SettingError for an unknown name or a circle."""
    filled = dict(data)
    for section in SECTIONS:
        entries = data.get(section)
        if isinstance(entries, Mapping):
            filled[section] = {name: _filled(data, section, name, entry) for name, entry in entries.items()}
    return filled


def _filled(data: Mapping[str, Any], section: str, name: str, entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    chain = list(_chain(data, section, name, entry))
    whole: dict[str, Any] = {}
    for _, _, part in reversed(chain):
        whole = inherit(whole, part)
    return whole | {"like": entry["like"]} if "like" in entry else whole


def _chain(data: Mapping[str, Any], section: str, name: str, entry: Any) -> Iterator[tuple[str, str, Mapping]]:
    """(section, name, content without `like`) of an entry and of all that it is like, the nearest first."""
    place, seen = (section, name), [(section, name)]
    while True:
        like = entry.get("like")
        yield *place, {key: value for key, value in entry.items() if key != "like"}
        if like is None:
            return
        places = [(part, like) for part in (section, BASES) if _has(data, part, like) and (part, like) != place]
        place = places[0] if places else None
        if place is None:
            known = [n for part in (section, BASES) for n in data.get(part) or () if n != name]
            raise SettingError.at(*seen[-1], "like", problem=unknown("entry", str(like), known))
        if place in seen:
            circle = " -> ".join([*(n for _, n in seen), like])
            raise SettingError.at(section, name, "like", problem=f"goes in a circle: {circle}.")
        seen.append(place)
        entry = data[place[0]][like]


def _has(data: Mapping[str, Any], section: str, name: Any) -> bool:
    entries = data.get(section)
    return isinstance(entries, Mapping) and isinstance(name, str) and isinstance(entries.get(name), Mapping)


def shared_entries(config: Config, name: str) -> dict[str, list[str]]:
    """`recipes.toy_grpo` -> the other experiments whose results an edit of that entry changes; of experiments only."""
    if name not in config.experiments:
        return {}
    involved = {other: _involved(config, other) for other in config.experiments}
    return {
        entry: others
        for entry in involved[name]
        if (others := [other for other in involved if other != name and entry in involved[other]])
    }


def _involved(config: Config, name: str) -> list[str]:
    """The entries that an experiment is made of."""
    experiment = config.experiments[name]
    made_of = [("experiments", name), ("recipes", experiment.recipe), ("models", experiment.model)]
    made_of += [("datasets", experiment.dataset), *(("benchmarks", b) for b in experiment.benchmarks)]
    entries = config.model_dump(include={*SECTIONS, BASES})
    chains = (_chain(entries, section, entry, entries[section][entry]) for section, entry in made_of)
    return list(dict.fromkeys(f"{section}.{entry}" for chain in chains for section, entry, _ in chain))
