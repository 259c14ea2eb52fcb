"""What provenance says of the environment: difference to the lock, GPUs with driver and CUDA, container."""

from __future__ import annotations

from importlib import metadata

import pytest

from selfdistill.artifacts import environment

LOCK = "# made by hand\ntorch==2.13.0\nPy_YAML==6.0\nmath-verify[antlr4]==0.8.0\ngone==1.0\n"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A lock, another one, and a place with installed packages."""
    locks, site = tmp_path / "requirements", tmp_path / "site"
    locks.mkdir()
    (locks / "cpu.lock.txt").write_text(LOCK)
    (locks / "other.lock.txt").write_text("something==1.0\n")
    for name in ("torch-2.13.0+cpu", "py_yaml-6.1", "math_verify-0.8.0", "more-3", "pip-25.0"):
        (site / f"{name}.dist-info").mkdir(parents=True)
    found = environment.installed([str(site)])
    monkeypatch.setattr(environment, "installed", lambda: found)
    return locks


def test_the_nearest_lock_and_every_difference_from_it(folders):
    assert environment.packages(folders) == {
        "lock": "cpu.lock.txt", "changed": {"py-yaml": ["6.0", "6.1"]}, "missing": ["gone"], "extra": {"more": "3"},
    }  # fmt: skip


def test_another_release_with_a_build_is_a_difference(folders):
    (folders / "cpu.lock.txt").write_text(LOCK.replace("2.13.0", "2.13.1"))
    assert environment.packages(folders)["changed"]["torch"] == ["2.13.1", "2.13.0+cpu"]


def test_without_locks_nothing_is_compared(tmp_path):
    assert environment.packages(tmp_path) == {"lock": None}


def test_installed_packages_are_those_that_python_knows():
    known = {environment.canonicalize_name(d.name): d.version for d in metadata.distributions()}
    found = environment.installed()
    assert {name: found.get(name) for name in ("torch", "numpy", "snakemake")} == {
        name: known[name] for name in ("torch", "numpy", "snakemake")
    }


def test_gpus_come_with_memory_and_driver(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15\\n%.0s' 1 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    environment._gpus.cache_clear()
    found = environment.devices()
    environment._gpus.cache_clear()
    assert found["gpus"] == ["NVIDIA H100 80GB HBM3, 81559 MiB"] * 2 and found["driver"] == "550.54.15"


def test_a_container_says_kind_image_digest_and_lock():
    inside = {"APPTAINER_CONTAINER": "/images/a.sif", environment.CONTAINER_DIGEST: "sha256:ab",
              environment.CONTAINER_LOCK: "cpu"}  # fmt: skip
    assert environment.container(inside) == {
        "kind": "apptainer", "image": "/images/a.sif", "digest": "sha256:ab", "lock": "cpu",
    }  # fmt: skip


def test_the_engine_of_a_container_is_known_by_the_file_that_it_puts_there(tmp_path, monkeypatch):
    marks = {"docker": tmp_path / ".dockerenv", "podman": tmp_path / ".containerenv"}
    monkeypatch.setattr(environment, "_MARKS", marks)
    assert environment.container({}) is None
    marks["podman"].touch()
    inside = {environment.CONTAINER_LOCK: "cpu"}
    assert environment.container(inside) == {"kind": "podman", "image": None, "digest": None, "lock": "cpu"}
