"""A Slurm that keeps accounts: jobs are paid for by one, and their states are asked of sacct."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_accounts import ACCOUNT, AccountingCluster, missing_accounts
from slurm_daemons import missing, only_cluster
from slurm_project import attempts_of, fill_site, run_on_slurm
from workflow_project import Project

REASON = missing() or missing_accounts()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(REASON is not None, reason=f"no accounts: {REASON}")]


@pytest.fixture(scope="module")
def accounting(tmp_path_factory) -> Iterator[AccountingCluster]:
    with only_cluster():
        running = AccountingCluster(tmp_path_factory.mktemp("accounts"))
        running.start()
        yield running
        running.stop()


@pytest.fixture
def study(tmp_path, project_root, accounting) -> Project:
    project = fill_site(Project.create(tmp_path / "project", project_root), slurm_account=ACCOUNT)
    project.edit_profile("slurm", lambda profile: profile.update({"slurm-status-command": "sacct"}))
    project.run("-n", "results/ood/toy_grpo.csv")
    return project


def test_a_job_is_paid_for_by_the_account_and_seen_to_finish(study, accounting):
    artifact = study.artifacts("dataset")[0]
    run_on_slurm(study, str((artifact / "manifest.json").relative_to(study.root)))
    (attempt,) = attempts_of(artifact)
    (job,) = [job for job in accounting.jobs("dataset") if job["JobId"] == attempt["slurm_job"]]
    assert (job["Account"], job["JobState"]) == (ACCOUNT, "COMPLETED")
    assert "on; the profile uses sacct" in study.cli("doctor")


def test_an_account_that_does_not_exist_is_named_before_anything_is_submitted(study, accounting):
    fill_site(study, slurm_account="nobody")
    known = len(accounting.jobs())
    artifact = study.artifacts("dataset")[0]
    output = run_on_slurm(study, str((artifact / "manifest.json").relative_to(study.root)), expect=2, timeout=120)
    assert "error: profiles/slurm/config.yaml: slurm_account: nobody is not one of your accounts" in output
    assert f"Known: root, {ACCOUNT}." in output
    assert len(accounting.jobs()) == known
    assert "nobody is not one of your accounts" in study.cli("doctor", expect=1)
