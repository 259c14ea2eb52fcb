"""Reading manifests and seals: what they must hold for their readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfdistill.schema.errors import UserError

#: Of specs and manifests.
FORMAT = 1


def read_manifest(path: Path, key: str) -> dict[str, Any]:
    """A manifest or seal of the artifact with this key; UserError if it is damaged or another's."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if _is_manifest(manifest, key):
            return manifest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"{path} is damaged or belongs to another artifact. Move it away and run again.")


def _is_manifest(content: Any, key: str) -> bool:
    """Whether it is a manifest of this artifact, as far as its readers rely on it; LookupError, ... if it is none."""
    files = all(isinstance(f["size"], int) and isinstance(f["sha256"], str) for f in content["files"].values())
    inputs = all(isinstance(i["id"], str) and isinstance(i["manifest"], str) for i in content["inputs"].values())
    of_it = content["key"] == key and content["format"] == FORMAT and isinstance(content["summary"], dict)
    return files and inputs and of_it
