"""Tables check what they read: a payload, metrics or a summary that has changed is one line, and no table."""

import json
from pathlib import Path

import pytest

from selfdistill.artifacts import verification
from selfdistill.artifacts.store import Artifact, all_artifacts, manifest_digest
from selfdistill.artifacts.verification import check_file, check_limit
from selfdistill.files import pretty_json
from selfdistill.plan.workspace import Workspace, plan_path, read_plan
from selfdistill.schema.errors import UserError
from selfdistill.views.__main__ import builder, main
from selfdistill.views.measures import open_artifact
from synthetic import CONFIG, Said, build_study, vouch_again

TABLE = Path("results/ood/tiny_grpo.csv")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A finished experiment, its table not made yet."""
    monkeypatch.chdir(tmp_path)
    behaviour = lambda artifact, step, family, row, sample: Said("correct", "wait it is done", 10)  # noqa: E731
    build_study("ood", "tiny_grpo", behaviour, lambda artifact, step: {"reward_mean": step / 100})
    return tmp_path


def make_table(view="ood", output=TABLE):
    plan = plan_path(view, "tiny_grpo")
    main([view, str(plan), str(output), "--log", "log"])
    return output.read_text()


def of_stage(stage):
    return next(a for a in all_artifacts() if a.stage == stage and a.is_sealed)


def test_a_flipped_bit_in_what_a_table_reads_is_one_line_and_no_table(project, capsys):
    row = read_plan(plan_path("ood", "tiny_grpo"))["rows"][0]
    path = Path("results/artifacts", row["evaluate_artifact"], "payload/rollouts.parquet")
    intact = path.read_bytes()
    for place in range(0, len(intact), len(intact) // 20):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        check_cache_cleared()
        with pytest.raises(SystemExit) as ended:
            make_table()
        assert ended.value.code == 2 and not TABLE.exists()
        assert f"payload/{path.name} is not what was made" in capsys.readouterr().err
    path.write_bytes(intact)
    check_cache_cleared()
    assert make_table().startswith("experiment,")


def check_cache_cleared():
    """Each process checks a file once; the tests are one process."""
    verification._check_file.cache_clear()


def test_curves_read_no_changed_metrics(project):
    Workspace(CONFIG).view_inputs("curves", "tiny_grpo")
    metrics = of_stage("train").metrics
    metrics.write_text(metrics.read_text().replace("0.05", "0.95"))
    with pytest.raises(UserError, match=r"metrics.jsonl is not what was made: see `selfdistill verify [0-9a-f]{12}`"):
        builder("curves")(read_plan(plan_path("curves", "tiny_grpo")))


def test_a_falsified_summary_is_not_read(project):
    artifact = of_stage("evaluate")
    record = {"attempts": [{"manifest": manifest_digest(artifact), "sealed": True}]}
    (artifact.folder / "provenance.json").write_text(pretty_json(record))
    change_summary(artifact)
    with pytest.raises(UserError, match="is not the one that was written"):
        open_artifact(artifact.name)


def change_summary(artifact):
    manifest = json.loads(artifact.manifest_path.read_text())
    artifact.manifest_path.write_text(pretty_json(manifest | {"summary": {"other": 1}}))


def test_of_files_above_the_limit_the_size_is_compared(project):
    artifact = of_stage("evaluate")
    path = artifact.payload / "rollouts.parquet"
    intact = path.read_bytes()
    token = check_limit.set(len(intact) - 1)
    try:
        path.write_bytes(b"x" * len(intact))
        assert check_file(artifact.folder, "payload/rollouts.parquet") == path
        check_cache_cleared()
        path.write_bytes(intact + b"x")
        with pytest.raises(UserError, match="is not what was made"):
            check_file(artifact.folder, "payload/rollouts.parquet")
    finally:
        check_limit.reset(token)
        check_cache_cleared()


@pytest.mark.parametrize("name", ["payload/none.parquet", "spec.json"])
def test_missing_files_and_those_that_no_manifest_vouches_for_are_not_read(project, name):
    with pytest.raises(UserError, match="is missing|is not what was made"):
        check_file(of_stage("evaluate").folder, name)


def test_vouching_again_is_what_the_other_tests_rely_on(project):
    artifact = Artifact(of_stage("evaluate").folder)
    (artifact.payload / "rollouts.parquet").write_bytes(b"other")
    vouch_again(artifact)
    assert check_file(artifact.folder, "payload/rollouts.parquet").read_bytes() == b"other"
