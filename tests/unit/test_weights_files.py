"""Weights as files, for an engine in other processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.generation import weights
from tiny import tiny_model


@pytest.mark.parametrize("tied", [True, False])
def test_weights_go_through_files_of_bounded_size(tmp_path, monkeypatch, tied):
    monkeypatch.setattr(weights, "_FILE_BYTES", 1)
    state = tiny_model(12, tied=tied).state_dict()
    weights.write_weights(iter(state.items()), tmp_path)
    assert len(list(tmp_path.iterdir())) == len(state)
    assert weights.holds_head(tmp_path)
    found = dict(weights.read_weights(tmp_path))
    assert found.keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in found.items())


def test_a_tied_head_that_a_model_folder_leaves_out_is_put_in(tmp_path):
    model = tiny_model(12)
    model.save_pretrained(tmp_path)
    assert not weights.holds_head(tmp_path)
    found = dict(weights.read_weights(tmp_path))
    assert found[weights.HEAD].equal(model.lm_head.weight) and found.keys() == model.state_dict().keys()


def test_the_folder_of_weights_is_private_and_goes_also_after_an_error():
    with pytest.raises(OSError, match="full"), weights.folder_in_memory() as folder:
        assert Path(folder).stat().st_mode & 0o077 == 0
        (Path(folder) / "model-00000.safetensors").touch()
        raise OSError("the disk is full")
    assert not Path(folder).exists()
