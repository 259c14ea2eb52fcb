"""The doctor: one line a check, an exit code for scripts, and what each rule would ask Slurm for."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

from selfdistill.cli import checks
from selfdistill.grading import sandbox
from selfdistill.grading.sandbox import backends
from selfdistill.plan.site import PROFILE


@pytest.fixture
def project(tmp_path, project_root, monkeypatch):
    """The shipped settings in a folder of their own, on a machine without Slurm."""
    for name in ("config", "profiles", "requirements"):
        shutil.copytree(project_root / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name in ("cat", "which"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{tmp_path / 'bin'}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def doctor(*arguments, expect=0):
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill.cli", "doctor", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def command(project, name, text):
    """A program of the site that answers with a text."""
    path = project / "bin" / name
    path.write_text(
        f"#!/bin/sh\n[ \"$1\" = ping ] && echo 'Slurmctld(primary) at x is UP' && exit\ncat <<'X'\n{text}\nX\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def lines_of(output, name):
    return [line.split(None, 2) for line in output.splitlines() if line.split()[1:2] == [name]]


def test_every_line_starts_with_its_verdict_and_warnings_are_no_failure(project):
    output = doctor()
    assert {line.split()[0] for line in output.splitlines()} <= {"ok", "warn"}
    assert {line.split()[1] for line in output.splitlines()} >= {
        "python", "torch", "gpus", "attention", "compiler", "vllm", "disk", "slurm", "mlflow", "assets", "sandbox"
    }  # fmt: skip
    assert lines_of(output, "slurm")[0][0] == "ok" and "not on this machine" in output
    doctor("--strict", expect=1)


def test_a_version_that_differs_from_the_lock_is_named(project):
    for path in (project / "requirements").glob("*.lock.txt"):
        path.write_text(path.read_text().replace("torch==2.13.0", "torch==2.99.0"))
    (line,) = [line for line in lines_of(doctor(), "torch") if line[0] == "warn"]
    assert "pins 2.99.0" in line[2]


def test_a_store_that_does_not_answer_fails(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (line,) = lines_of(doctor(expect=1), "mlflow")
    assert line[0] == "fail" and "does not answer" in line[2]


@pytest.mark.parametrize("is_installed", [True, False])
def test_without_a_sandbox_the_doctor_says_why_and_advises_only_what_can_help(project, monkeypatch, is_installed):
    """Programs that fail stand in for a kernel that refuses user namespaces, as it does in most containers."""
    monkeypatch.setattr(sandbox, "available", backends.available.__wrapped__)
    refusal = "echo 'No permissions to create a new namespace' >&2; exit 1"
    monkeypatch.setitem(backends._COMMANDS, "kernel", lambda limits: ["/bin/sh", "-c", refusal])
    if is_installed:
        (project / "bin" / "bwrap").write_text(f"#!/bin/sh\n{refusal}\n")
        (project / "bin" / "bwrap").chmod(0o755)
    (check,) = checks.sandbox()
    assert check.state == "warn" and "kernel: No permissions to create a new namespace" in check.text
    assert ("install the package bubblewrap" in check.text) != is_installed
    assert "allow user namespaces" in check.text


def test_a_broken_check_is_a_failure_and_stops_no_other(project):
    (project / "config/assets.lock.yaml").write_text("x: [")
    output = doctor(expect=1)
    assert lines_of(output, "assets")[0][0] == "fail"
    assert lines_of(output, "sandbox")


@pytest.mark.parametrize(("driver", "state"), [("570.86.15", "fail"), ("580.65.06", "ok"), ("595.10", "ok")])
def test_a_driver_too_old_for_the_locks_cuda_fails(project, driver, state):
    path = project / "bin" / "nvidia-smi"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *driver_version*) echo {driver} ;; *) echo "0, NVIDIA H200, 143000, 143771" ;; esac\n'
    )
    path.chmod(0o755)
    (line,) = lines_of(doctor(expect=1 if state == "fail" else 0), "driver")
    assert line[0] == state and "580" in line[2]


def test_without_a_gpu_no_driver_is_asked_for(project):
    assert lines_of(doctor(), "driver") == []


def fake_slurm(project, accounting, min_job_age=300):
    for name in ("sbatch", "srun", "squeue", "scancel"):
        command(project, name, "")
    command(project, "sinfo", "gpu*|up|infinite|2|4|16000|gpu:2")
    command(project, "scontrol", f"AccountingStorageType   = {accounting}\nMinJobAge               = {min_job_age} sec")
    profile = yaml.safe_load((project / PROFILE).read_text())
    profile["default-resources"] |= {"slurm_account": "none", "slurm_partition": "gpu"}
    (project / PROFILE).write_text(yaml.safe_dump(profile))


def test_a_slurm_without_accounts_needs_squeue(project):
    fake_slurm(project, "accounting_storage/none")
    output = doctor(expect=1)
    (line,) = lines_of(output, "accounting")
    assert line[0] == "fail" and "Set it to squeue" in line[2]
    assert lines_of(output, "slurm")[0][0] == lines_of(output, "partition")[0][0] == "ok"
    path = project / PROFILE
    path.write_text(path.read_text().replace("slurm-status-command: sacct", "slurm-status-command: squeue"))
    assert lines_of(doctor(), "accounting")[0][0] == "ok"


def test_a_slurm_with_accounts_is_asked_by_sacct(project):
    fake_slurm(project, "accounting_storage/slurmdbd")
    assert lines_of(doctor(), "accounting")[0][0] == "ok"


def test_a_partition_that_does_not_exist_is_named(project):
    fake_slurm(project, "accounting_storage/slurmdbd")
    path = project / PROFILE
    path.write_text(path.read_text().replace("slurm_partition: gpu", "slurm_partition: gpuu"))
    output = doctor(expect=1)
    assert "there is no partition `gpuu`. Known: gpu" in output


def test_resources_show_what_each_rule_would_ask_for(project):
    output = doctor("--resources", "qwen3_sdpo")
    (train,) = [line for line in output.splitlines() if line.startswith("train")]
    assert "qwen3-8b" in train
    assert "-t 2880 --mem 400000 --nodes=1 --cpus-per-task=32 --signal=TERM@300" in train and "--gpus=4" in train
    rules = [line.split()[0] for line in output.splitlines()[1:]]
    assert set(rules) == {"dataset", "model", "prompts", "train", "evaluate", "epistemics"}


def test_a_pin_is_read_from_the_lock_and_nothing_like_it(project):
    assert checks.pinned("torch", "cpu") == "2.13.0"
    assert checks.pinned("orch", "cpu") is None
    assert checks.pinned("vllm", "vllm-cuda") == "0.32.0"
