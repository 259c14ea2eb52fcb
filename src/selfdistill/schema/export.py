"""JSON schemas of the settings and their tables in the docs: `python -m selfdistill.schema.export [--check]`.

Schemas go to workflow/schemas/, tables into the marked blocks of docs/*.md (`reference.py`). Both are generated from
the models and never edited; tests keep them in sync.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from selfdistill.schema import reference
from selfdistill.schema.assets import AssetLock
from selfdistill.schema.base import Model
from selfdistill.schema.config import Config
from selfdistill.schema.runtime import RuntimeConfig

FOLDER = Path("workflow/schemas")
DOCS = Path("docs")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def exported() -> dict[str, type[Model]]:
    """File name -> model: the three files that a user edits."""
    files = {"config": Config, "runtime": RuntimeConfig, "assets": AssetLock}
    return {f"{name}.schema.json": model for name, model in files.items()}


def schema_text(model: type[Model]) -> str:
    """The schema of one model, as it stands in its file."""
    schema = {"$schema": DIALECT, **model.model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def differences(folder: Path = FOLDER) -> list[str]:
    """Files that are missing, out of date or left over, one line each."""
    wanted = exported()
    here = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    lines = [f"{name}: missing" for name in wanted if name not in here]
    lines += [f"{name}: out of date" for name in wanted if name in here and here[name] != schema_text(wanted[name])]
    return sorted(lines + [f"{name}: belongs to no model" for name in here if name not in wanted])


def write(folder: Path = FOLDER) -> None:
    """Write every schema and remove what belongs to no model."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = exported()
    for path in folder.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, model in wanted.items():
        (folder / name).write_text(schema_text(model), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="selfdistill.schema.export", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Write nothing; exit code 1 if a file is not in sync.")
    if not parser.parse_args().check:
        write()
        reference.fill(DOCS)
        return 0
    found = [f"{FOLDER}/{line}" for line in differences()] + [f"{DOCS}/{line}" for line in reference.outdated(DOCS)]
    for line in found:
        print(f"{line}. Run: python -m selfdistill.schema.export", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
