"""The JSON schemas in workflow/schemas say what the models say, and the shipped files satisfy them."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from selfdistill.schema.export import FOLDER, differences, exported, write

SHIPPED = {"config": "config/config.yaml", "runtime": "config/runtime.yaml"}


def test_shipped_schemas_are_in_sync(project_root):
    found = differences(project_root / FOLDER)
    assert not found, f"run python -m selfdistill.schema.export: {found}"


@pytest.mark.parametrize("name", sorted(exported()))
def test_each_schema_is_valid_and_describes_every_field(project_root, name):
    schema = json.loads((project_root / FOLDER / name).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    definitions = schema.get("$defs", {})
    undescribed = [
        f"{model}.{field}"
        for model, part in {name: schema, **definitions}.items()
        for field, content in part.get("properties", {}).items()
        if "const" not in content and not _description(content, definitions)
    ]
    assert not undescribed


def _description(content, definitions):
    """A field whose sentence equals its model's has it once, at the model."""
    return content.get("description") or definitions.get(content.get("$ref", "").rsplit("/")[-1], {}).get("description")


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_settings_satisfy_their_schema(project_root, name):
    schema = json.loads((project_root / FOLDER / f"{name}.schema.json").read_text())
    content = yaml.safe_load((project_root / SHIPPED[name]).read_text())
    jsonschema.Draft202012Validator(schema).validate(content)


def test_shipped_asset_lock_satisfies_its_schema(project_root):
    schema = json.loads((project_root / FOLDER / "assets.schema.json").read_text())
    content = yaml.safe_load((project_root / "config/assets.lock.yaml").read_text())
    jsonschema.Draft202012Validator(schema).validate({"assets": content})


def test_a_missing_a_changed_and_a_left_over_file_are_each_named(tmp_path: Path):
    write(tmp_path)
    assert differences(tmp_path) == []
    (tmp_path / "config.schema.json").unlink()
    (tmp_path / "runtime.schema.json").write_text("{}\n")
    (tmp_path / "old.schema.json").write_text("{}\n")
    assert differences(tmp_path) == [
        "config.schema.json: missing",
        "old.schema.json: belongs to no model",
        "runtime.schema.json: out of date",
    ]
    write(tmp_path)
    assert differences(tmp_path) == []
