"""Import of a GGUF file into an ordinary model folder: float32 safetensors, tokenizer, chat template.

The weights are dequantised exactly (block scale times integer, in float32) and are the same on every machine, so the
folder is a function of the file and of the versions of transformers and gguf, which are recorded beside it in
`<folder>.import.json`.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from selfdistill.assets.folders import folder_digest
from selfdistill.files import move_into_place, pretty_json, read_json, write_atomically
from selfdistill.schema.errors import UserError

#: Raised when the import writes other files than before.
IMPORT_VERSION = 1


def import_gguf(file: Path, sha256: str, target: Path) -> Path:
    """Make `target` from a GGUF file with the given digest, once; several jobs may call this at the same time.

    Raises UserError when the folder was changed since its import, and for a file that transformers cannot read.
    """
    note = target.with_name(f"{target.name}.import.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        recorded = _recorded(note) if target.is_dir() else {}
        if (recorded.get("sha256"), recorded.get("import_version")) == (sha256, IMPORT_VERSION):
            if folder_digest(target) != recorded["folder_sha256"]:
                raise UserError(
                    f"{target} was changed since its import from {file.name}. Move it away to import it again."
                )
            return target
        if target.exists() and not recorded:
            raise UserError(f"{target} exists and was not imported from {file.name}: move it away.")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
            _convert(file, Path(folder) / "model")
            note.unlink(missing_ok=True)
            move_into_place(Path(folder) / "model", target)
        write_atomically(note, pretty_json(_note(file, sha256, folder_digest(target))))
    return target


def _recorded(note: Path) -> dict[str, str]:
    """What an earlier import noted; empty if there is no note, or a damaged one."""
    try:
        found = read_json(note)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and "folder_sha256" in found else {}


def _note(file: Path, sha256: str, folder_sha256: str) -> dict[str, object]:
    return {
        "file": file.name,
        "sha256": sha256,
        "import_version": IMPORT_VERSION,
        "folder_sha256": folder_sha256,
        "versions": {name: version(name) for name in ("gguf", "torch", "transformers")},
    }


def _convert(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        config = AutoConfig.from_pretrained(**place)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} cannot be read as a GGUF model: {type(error).__name__}: {error}") from error
    if not tokenizer.chat_template:
        raise UserError(f"{file} has no chat template, so it cannot be used as a chat model.")
    # A model that was read from GGUF counts as quantised and refuses to be saved; its weights are plain tensors.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for saved in target.iterdir():
        saved.chmod(0o644)  # safetensors writes for the owner alone; other users of a cluster read models too
