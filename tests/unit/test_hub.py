"""Models and tables for the hub: they load with plain libraries, and the card says what tables and lineage say."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from selfdistill.artifacts.store import Artifact, all_artifacts
from selfdistill.cli import app
from selfdistill.exchange import hub
from selfdistill.schema.errors import UserError
from selfdistill.views.__main__ import main as make_view
from synthetic import Said, build_study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A finished experiment with its table; returns a training of it. Models are small files here."""
    monkeypatch.chdir(tmp_path)
    plan = build_study(
        "ood", "tiny_grpo", lambda artifact, step, family, row, sample: Said("correct", "wait \\boxed{1}", 5 + row),
        lambda artifact, step: {"reward_mean": step / 12},
    )  # fmt: skip
    make_view(["ood", str(plan), "results/ood/tiny_grpo.csv", "--log", "log.txt"])
    Path("config").mkdir()
    Path("config/config.yaml").write_text("{}\n")
    return next(a for a in all_artifacts() if a.stage == "train" and a.frozen_spec["params"]["seed"] == 1)


def push(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["push", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_checkpoint_is_copied_with_a_card_whose_numbers_are_those_of_the_table(study):
    before = {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()}
    output = push(study.key, "me/tiny")
    assert "hf upload me/tiny results/hub/tiny . --repo-type model" in output
    card = Path("results/hub/tiny/README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["license"]) == ("transformers", "apache-2.0")
    with Path("results/ood/tiny_grpo.csv").open() as file:
        (row,) = [
            row for row in csv.DictReader(file)
            if (row["train_artifact"], row["seed"], row["step"], row["family"]) == (study.name, "1", "12", "all")
        ]  # fmt: skip
    (scores,) = [line.split(" | ") for line in card.splitlines() if line.startswith("| exam |")]
    assert scores[3:5] == [row["avg_at_k"], f"{row['avg_at_k_low']} to {row['avg_at_k_high']}"]
    assert math.isfinite(float(scores[3]))
    for text in ("**GRPO**: A = r - mean(r)", f"selfdistill reproduce {study.id}", "families ['id']"):
        assert text in card
    assert "families ['long', 'mod']" not in card.partition("## Method")[0]
    copied = {path.name for path in Path("results/hub/tiny").iterdir()}
    assert copied == {path.name for path in (study.payload / "checkpoints/step-12").iterdir()} | {"README.md"}
    assert {path: path.read_bytes() for path in before} == before
    push(study.key, "me/earlier", "--step", "6")
    assert "No table on the machine" in Path("results/hub/earlier/README.md").read_text()


def test_rollouts_load_by_the_datasets_library_in_both_forms(study, tmp_path):
    from datasets import load_dataset, load_from_disk

    (evaluation, *_) = [a for a in all_artifacts() if a.stage == "evaluate"]
    assert "--repo-type dataset" in push(evaluation.id, "me/rows")
    push(evaluation.id, "me/saved", "--form", "saved")
    rows = load_dataset("results/hub/rows", split="train", cache_dir=str(tmp_path / "cache"))
    saved = load_from_disk("results/hub/saved")
    assert len(rows) == len(saved) > 0 and rows.column_names == saved.column_names
    assert json.dumps(rows[0], default=str) == json.dumps(saved[0], default=str)
    assert f"{len(rows)} rows of stage `evaluate`" in Path("results/hub/rows/README.md").read_text()


def test_mistakes_are_one_line_and_leave_no_folder(study):
    for arguments, message in (
        ((study.key, "me/x", "--step", "7"), "has no checkpoint at step 7. Steps: 6, 12."),
        (("0123456789ab", "me/x"), "there is no artifact `0123456789ab`"),
    ):
        with pytest.raises(UserError, match=message):
            push(*arguments)
    push(study.key, "me/tiny")
    with pytest.raises(UserError, match="results/hub/tiny exists"):
        push(study.key, "me/tiny")
    assert [path.name for path in Path("results/hub").iterdir()] == ["tiny"]


def test_what_was_imported_without_its_files_is_not_pushed(study):
    """A card without weights, or half of the rows, would look like the result."""
    (evaluation, *_) = [a for a in all_artifacts() if a.stage == "evaluate"]
    weights = next(path for path in (study.payload / "checkpoints/step-12").iterdir() if path.is_file())
    rows = next(evaluation.payload.rglob("*.parquet"))
    for artifact, file in ((study, weights), (evaluation, rows)):
        file.unlink()
        with pytest.raises(UserError, match=f"{file} is missing or has another size"):
            push(artifact.id, "me/x")
        file.write_bytes(b"cut")
        with pytest.raises(UserError, match=f"{file} is missing or has another size"):
            push(artifact.id, "me/x")
    assert not Path("results/hub").exists()


def test_a_table_is_no_model_and_a_base_model_has_no_steps(study):
    with pytest.raises(UserError, match="has no steps"):
        hub.checkpoint(study.input("model"), 3)
    assert hub.kind_of(study.input("model")) == "model" and hub.kind_of(study.input("prompts")) == "dataset"
