"""The image of containers/Dockerfile, built and started by Podman: the command, the sandbox, a job with its provenance.

The base image must be on this machine: `podman pull`, or tools/container_base.sh without a registry. pip's settings and
the certificates of this machine are mounted into the build, so that they are no part of the image (docs/testing.md).
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_project import Project

pytestmark = pytest.mark.container

BASE = "docker.io/library/python:3.11-slim-bookworm"
TAG = "localhost/selfdistill-test:cpu"
#: An ordinary user, whom the image does not know.
USER = 1234


def obstacle() -> str | None:
    """Why no image can be built here; None if one can."""
    if shutil.which("podman") is None:
        return "podman is not installed (apt-get install podman)"
    known = subprocess.run(["podman", "image", "exists", BASE], capture_output=True, text=True, check=False)
    return None if known.returncode == 0 else f"{BASE} is not on this machine {known.stderr}".strip()


def settings_of_pip(folder: Path) -> list[str]:
    """Mounts that give the build pip's settings, and the local files that they name, each at its own place."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    # Lines are `global.index-url='...'` or, from the environment, `:env:.index-url='...'`.
    pairs = [line.split("=", 1) for line in listed.splitlines()]
    settings = {name.rpartition(".")[2]: ast.literal_eval(value) for name, value in pairs}
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    words = [word for value in settings.values() for word in str(value).split()]
    # An index is a folder of pages that refer to files beside it.
    named = {str(Path(word.removeprefix("file://")).parent) if word.startswith("file://") else word for word in words}
    paths = {"/etc/ssl/certs", *(path for path in named if path.startswith("/") and Path(path).exists())}
    mounts = [(folder / "pip.conf", "/etc/pip.conf"), *((path, path) for path in sorted(paths))]
    return [word for source, target in mounts for word in ("-v", f"{source}:{target}:ro")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> str:
    reason = obstacle()
    if reason:
        pytest.skip(f"no image: {reason}")
    command = ["podman", "build", "--isolation", "chroot", "--pull-never", "-f", "containers/Dockerfile", "-t", TAG]
    command += ["--build-arg", "LOCK=cpu", *settings_of_pip(tmp_path_factory.mktemp("pip")), "."]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return TAG


@pytest.fixture
def project(tmp_path: Path, project_root: Path) -> Project:
    project = Project.create(tmp_path / "project", project_root)
    shutil.copytree(project_root / "requirements", project.root / "requirements")
    subprocess.run(["chown", "-R", f"{USER}:{USER}", project.root], check=True)
    return project


def inside(image: str, project: Project, *command: str, options: tuple[str, ...] = ()) -> str:
    mount = ["-v", f"{project.root}:/project", "-u", f"{USER}:{USER}"]
    run = ["podman", "run", "--rm", "--network", "none", *mount, "-e", "OMP_NUM_THREADS=1", *options, image]
    done = subprocess.run([*run, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_command_answers_and_nothing_of_the_build_stays(image, project):
    assert re.fullmatch(r"selfdistill \d+\.\d+\.\d+\s*", inside(image, project, "selfdistill", "--version"))
    left = inside(
        image, project, "sh", "-c", "cat /etc/pip.conf; ls -d /build /var/lib/apt/lists/*_* 2>&1; which gcc; true"
    )
    assert "=" not in left and left.count("No such file") == 2 and "gcc" not in left


def test_the_code_of_the_mounted_checkout_runs_since_provenance_names_its_commit(image, project, project_root):
    shutil.copytree(project_root / "src", project.root / "src")
    code = project.root / "src/selfdistill/__init__.py"
    code.write_text(re.sub(r'__version__ = ".*"', '__version__ = "9.9.9"', code.read_text()))
    assert inside(image, project, "selfdistill", "--version").strip() == "selfdistill 9.9.9"


def test_the_doctor_tells_whether_programs_can_be_run_in_a_sandbox(image, project):
    """Podman's usual filter of system calls refuses parts of a sandbox; the doctor's advice must then help."""
    advice = "--security-opt seccomp=unconfined"
    refused = inside(image, project, "selfdistill", "doctor")
    assert "no sandbox works" not in refused or advice in refused
    allowed = inside(image, project, "selfdistill", "doctor", options=tuple(advice.split()))
    assert re.search(r"^ok +sandbox", allowed, re.MULTILINE), allowed


def test_a_job_runs_as_a_user_whom_the_image_does_not_know_and_names_container_and_lock(image, project):
    inside(image, project, "snakemake", "--profile", "local", "-n", "results/ood/toy_grpo.csv")
    artifact = project.artifacts("dataset")[0]
    target = str((artifact / "manifest.json").relative_to(project.root))
    inside(image, project, "snakemake", "--profile", "local", target)
    (attempt,) = json.loads((artifact / "provenance.json").read_text())["attempts"]
    assert attempt["sealed"] and attempt["container"] == {
        "kind": "podman",
        "image": None,
        "digest": None,
        "lock": "cpu",
    }
    packages = attempt["packages"]
    assert (packages["lock"], packages["changed"], packages["missing"]) == ("cpu.lock.txt", {}, [])
