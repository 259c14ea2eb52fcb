"""Random mistakes in the settings files: each is accepted, or refused with lines that name the file. Never a traceback.

A hundred mistakes in every file are tried in every run of the tests, and 500 more, 1,500 in all, by `make test-attack`.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfdistill.plan.runtime import check_models, load_runtime
from selfdistill.plan.views import view_names
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.assets import read_assets
from selfdistill.schema.base import Model
from selfdistill.schema.errors import UserError, unknown
from selfdistill.schema.yaml_file import read_yaml

#: Seeds of the mistakes.
MISTAKES = [range(100), pytest.param(range(100, 600), marks=pytest.mark.attack)]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2.0, 0.5, -0.0, 10**9, 10**30, 10**4400, 1e308, float("nan"), float("inf"),
    "", "x", "2", "2.0", "toy_id", "../../x", "a b", "\0", "é", "{", "}", "{question}", "{x!r:>9}", "1" * 5000,
    "--help", [], [0], ["a"], [[]], [None], {}, {"a": 1}, {"name": "grpo"}, {"kind": "toy"}, {1: 2}, {None: 1},
]  # fmt: skip
NAMES: list[Any] = ["zz", "", "a b", "../x", "steps", "asset", 1, None]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested mappings and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def models(base: type = Model) -> Iterator[type[Model]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("selfdistill."):  # Not those of tests that this process has imported.
            yield model
        yield from models(model)


def absent_settings(mapping: dict[Any, Any]) -> list[str]:
    """Settings that a mapping could have as well, going by the keys that it has."""
    fields = [set(model.model_fields) for model in models()]
    return sorted({name for names in fields if set(mapping) <= names for name in names - set(mapping)})


def with_mistake(content: dict[Any, Any], draw: random.Random) -> dict[Any, Any]:
    """The settings with a value changed, removed, added (also one that no shipped entry has), copied, or renamed."""
    content = copy.deepcopy(content)
    everywhere = list(places(content))
    path = draw.choice(everywhere)
    parent, key = at(content, path[:-1]), path[-1]
    kind = draw.choice(["change", "change", "change", "remove", "rename", "add", "absent", "absent", "copy"])
    if kind == "remove":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw.choice([*NAMES, str(key)[:-1]])] = parent.pop(key)
    elif kind == "add" and isinstance(parent[key], dict):
        parent[key][draw.choice(NAMES)] = draw.choice(VALUES)
    elif kind == "add" and isinstance(parent[key], list):
        parent[key].append(draw.choice(VALUES))
    elif kind == "absent" and isinstance(parent, dict) and (absent := absent_settings(parent)):
        parent[draw.choice(absent)] = copy.deepcopy(draw.choice(VALUES))
    elif kind == "copy":
        parent[key] = copy.deepcopy(at(content, draw.choice(everywhere)))
    else:
        parent[key] = copy.deepcopy(draw.choice(VALUES))
    return content


def write(path: Path, content: dict[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    sys.set_int_max_str_digits(limit)


def try_config(content: dict[Any, Any], folder: Path) -> None:
    """Everything that planning does with a config, for some names of each view."""
    project = Workspace(content)
    project.check()
    draw = random.Random(len(repr(content)))
    for view, names in view_names(project.planner).items():
        for name in draw.sample(names, min(2, len(names))):
            for node in project.plan(view, name).nodes.values():
                assert node.name.isascii()


def try_runtime(content: dict[Any, Any], folder: Path) -> None:
    path = folder / "runtime.yaml"
    write(path, content)
    check_models(load_runtime(str(path)), str(path), ["toy", *map(str, content.get("models") or ())])


def try_lock(content: dict[Any, Any], folder: Path) -> None:
    write(folder / "config/assets.lock.yaml", content)
    assets = read_assets(folder)
    for name in assets.assets:
        assets.pin(name)


FILES: dict[str, Callable[[dict[Any, Any], Path], None]] = {
    "config/config.yaml": try_config,
    "config/runtime.yaml": try_runtime,
    "config/assets.lock.yaml": try_lock,
}


@pytest.mark.parametrize("seeds", MISTAKES, ids=len)
@pytest.mark.parametrize("file", FILES)
def test_a_mistake_in_the_settings_is_never_a_traceback(project_root, tmp_path, monkeypatch, file, seeds):
    monkeypatch.chdir(project_root)
    content = read_yaml(Path(file))
    refused = 0
    for seed in seeds:
        mistaken = with_mistake(content, random.Random(seed))
        try:
            FILES[file](mistaken, tmp_path)
        except UserError as error:
            refused += 1
            check_message(str(error), seed)
        except Exception as error:
            raise AssertionError(f"{file}, seed {seed}: {type(error).__name__}: {error}") from error
    assert refused > len(seeds) / 3


def test_a_number_among_names_is_listed_with_them():
    assert str(unknown("entry", "toy", ["toys", 1])) == "unknown entry `toy`. Did you mean `toys`? Known: 1, toys."


def check_message(message: str, seed: int) -> None:
    for line in message.splitlines():
        about_a_file = ".yaml: " in line or ".yaml, line " in line
        assert about_a_file or line.startswith("asset `"), f"seed {seed}: {line!r} names no file"
        assert "``" not in line and len(line) < 2000, f"seed {seed}: {line[:300]!r}"


@pytest.mark.parametrize("seeds", MISTAKES, ids=len)
@pytest.mark.parametrize("file", FILES)
def test_damaged_text_is_never_a_traceback(project_root, tmp_path, file, seeds):
    text = (project_root / file).read_bytes()
    path = tmp_path / "damaged.yaml"
    for seed in seeds:
        draw = random.Random(seed)
        damaged = bytearray(text)
        for _ in range(draw.choice([1, 1, 5])):
            damaged[draw.randrange(len(damaged))] = draw.choice(b"\0\t\n\xff\xe9 :-[]{}\"'&*!|>%@`#,?1a")
        path.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        try:
            read_yaml(path)
        except UserError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error), f"seed {seed}: {error}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 200_000, "line 1, is not valid YAML: it is nested more than 100 levels deep"),
        ("a: 1\nb: " + "1" * 5000, "line 2, is not valid YAML: '111"),
        ("a: 2024-13-45", "'2024-13-45' cannot be read as timestamp (month must be in 1..12)"),
        ("a: !!int ''", "line 1, is not valid YAML: '' cannot be read as int"),
        ("a: &x {b: *x}", "`*x` contains itself"),
        ("? [1]\n: 2", "found unhashable key"),
    ],
)
def test_yaml_that_the_library_crashes_on_is_one_line(tmp_path, text, message):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read_yaml(path)
    assert message in str(raised.value) and len(str(raised.value)) < 600
