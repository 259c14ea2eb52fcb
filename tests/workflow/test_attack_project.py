"""Attacks on a whole project: clean-up during a run, full and read-only disks, a checkout with braces in its path."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_damaged_results import AS_ANYONE
from workflow_helpers import TARGET, set_learning_rate
from workflow_project import Project

pytestmark = pytest.mark.attack
STEPS = 48


def longer(config: dict) -> None:
    set_learning_rate(3e-4)(config)
    config["recipes"]["toy_grpo"] |= {"steps": STEPS, "checkpoint_every": 24}


def without_the_experiment(config: dict) -> None:
    del config["experiments"]["toy_grpo"]
    config["report"] = {}
    config["reports"] = {}


def payloads(project: Project) -> dict[str, str]:
    """Digests of all results but metrics.jsonl, which holds times, by file."""
    found = {}
    for name, manifest in project.manifests().items():
        for file, entry in json.loads(manifest)["files"].items():
            if file != "metrics.jsonl":
                found[f"{Path(name).parent}/{file}"] = entry["sha256"]
    return found


def said(project: Project, *arguments: str) -> str:
    """What a command prints, however it ends."""
    words = [sys.executable, "-m", "selfdistill.cli", *arguments]
    done = subprocess.run(words, cwd=project.root, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


def test_clean_up_during_a_run_changes_nothing(project, finished, tmp_path):
    """gc of other settings, discard, import, verify and track, again and again, while a training runs."""
    alone = finished.copy(tmp_path / "alone")
    alone.edit(longer)
    alone.run(TARGET)
    assert " tables, " in said(alone, "export", TARGET, str(tmp_path / "study.tar.zst"))
    project.edit(longer)
    other = project.copy(tmp_path / "other")
    other.edit(without_the_experiment)
    shutil.copy(other.root / "config/config.yaml", project.root / "other.yaml")
    running, log, refusals = project.start(TARGET), [], []
    before = set(project.artifacts("train"))
    while running.poll() is None:
        (key,) = [path.name[-12:] for path in project.artifacts("train") if path not in before] or ["none"]
        for command in (("gc", "--yes", "--only-config", "--configfile", "other.yaml"), ("discard", "--yes", key),
                        ("verify",), ("track",), ("import", str(tmp_path / "study.tar.zst"))):  # fmt: skip
            has_begun = any((project.root / ".snakemake/locks").glob("*.lock"))
            if command[0] == "import" and not has_begun:
                continue  # It would leave nothing to compute.
            log.append(said(project, *command))
            if "is being computed now" in log[-1] or "a workflow is running" in log[-1]:
                refusals.append(command[0])
            if has_begun and running.poll() is None:
                assert not re.search(r"discarded |artifacts removed|[1-9][0-9]* artifacts imported", log[-1]), log[-1]
    output = running.communicate()[0]
    assert running.returncode == 0, output
    assert not any("Traceback" in text for text in [*log, output]), [t for t in log if "Traceback" in t][:1]
    assert len(refusals) >= 2 and "import" in refusals, "the run was over before the attack had begun"
    if (project.root / "results/artifacts/.trash").exists():  # Before the start and after the end they may remove.
        said(project, "undo")
        said(project, "undo")
        project.run(TARGET)
    assert payloads(alone).keys() - payloads(finished).keys()
    assert payloads(alone).items() <= payloads(project).items()
    for folder in set(project.artifacts("train")) - before:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    assert (project.root / TARGET).read_bytes() == (alone.root / TARGET).read_bytes()
    assert said(project, "verify").endswith(" 0 problems.\n")


@pytest.fixture
def small_disk(finished, tmp_path):
    """A project whose results lie on a disk of their own."""
    project = finished.copy(tmp_path / "project")
    results, kept = project.root / "results", project.root / "kept"
    results.rename(kept)
    results.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(results)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    try:
        shutil.copytree(kept, results, dirs_exist_ok=True)
        yield project
    finally:
        subprocess.run(["umount", "-l", str(results)], check=True)


def test_a_full_disk_is_one_line_and_the_same_command_ends_with_the_same_bytes(small_disk, finished):
    project, results = small_disk, small_disk.root / "results"
    for stage in ("train", "evaluate"):
        for folder in project.artifacts(stage):
            for name in ("manifest.json", ".sealed.json", "metrics.jsonl"):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "payload")
    (project.root / TARGET).unlink()
    failures = 0
    for free in (0, 16, 300, 1500):
        space = os.statvfs(results)
        with (results / "filler").open("wb") as filler:
            filler.write(b"x" * max(0, space.f_bavail * space.f_frsize - free * 1024))
        output = project.run(TARGET, expect=None)
        failures += "the disk is full" in output
        assert "Traceback" not in output, output[-3000:]
        (results / "filler").unlink()
    assert failures >= 3
    project.run(TARGET)
    assert payloads(project) == payloads(finished)
    assert (project.root / TARGET).read_bytes() == (finished.root / TARGET).read_bytes()


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write everywhere")
def test_results_that_may_not_be_written_are_one_line_of_snakemake(project):
    (project.root / TARGET).unlink()
    project.edit(set_learning_rate(3e-4))
    folders = [path for path in (project.root / "results").rglob("*") if path.is_dir()]
    for folder in [project.root / "results", *folders]:
        folder.chmod(0o555)
    try:
        command = [*(AS_ANYONE if os.geteuid() == 0 else ()), *project.command(TARGET)]
        output = project.start(command=command).communicate(timeout=300)[0]
    finally:
        for folder in [project.root / "results", *folders]:
            folder.chmod(0o755)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "cannot be read or written: Permission denied" in line
    assert "Traceback" not in output


def test_braces_in_the_path_of_the_checkout_are_one_line(finished, tmp_path):
    """Snakemake takes them for wildcards and stops with a traceback."""
    project = finished.copy(tmp_path / "a {0} b")
    output = project.run("-n", TARGET, expect=2)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {project.root}: Snakemake takes braces in a path for wildcards")
    assert "Traceback" not in output


def test_braces_blanks_and_quotes_in_the_path_of_the_environment(project, finished, tmp_path):
    environment = tmp_path / "a {b} {0} 'c' $d"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin/python"
    python.symlink_to(os.path.realpath(sys.executable))
    (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment)
    for folder in project.artifacts("epistemics"):
        for name in ("manifest.json", ".sealed.json"):
            (folder / name).unlink()
    (project.root / TARGET).unlink()
    before = project.attempts()
    process = project.start(command=[str(python), *project.command(TARGET)[1:]])
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert (project.attempts() - before).total() == len(project.artifacts("epistemics"))
    assert (project.root / TARGET).read_bytes() == (finished.root / TARGET).read_bytes()
