"""A project directory in which snakemake is run as a user would, and the toy world at a few steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from selfdistill.plan.inheritance import SECTIONS, with_inherited


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The shipped config with the toy world at a few steps; every `like` is filled in, so that tests edit one entry."""
    config = with_inherited(config)
    for section in SECTIONS:
        for entry in config.get(section, {}).values():
            entry.pop("like", None)
    for name, count in (("toy_train", 64), ("toy_mixed", 64), ("toy_id", 12), ("toy_ood", 4)):
        config["datasets"][name]["source"]["count"] = count
    made = config["models"]["toy"]["pretrain"]
    made |= {"steps": 40, "max_final_loss": 99.0}
    made["optimiser"] |= {"warmup_steps": 5}
    for name in [name for name in config["recipes"] if name.startswith("toy_")]:
        config["recipes"][name] |= {"steps": 4, "prompts_per_step": 4, "prompts_per_update": 4, "checkpoint_every": 4}
    for name in [name for name in config["experiments"] if name.startswith("toy_")]:
        config["experiments"][name] |= {"seeds": [0], "benchmarks": ["toy_id"], "variants": [], "coverage": None}
    return config


class Project:
    """A project directory in which snakemake is run as a user would."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path, source: Path) -> Project:
        root.mkdir(parents=True)
        for name in ("workflow", "config", "profiles"):
            shutil.copytree(source / name, root / name)
        for name in ("Snakefile", "stages.lock.json"):
            shutil.copy(source / name, root / name)
        for name in ("local", "slurm"):
            (root / name).symlink_to(Path("profiles") / name)
        project = cls(root)
        project.write_config(shrunk(project.config()))
        return project

    def copy(self, root: Path) -> Project:
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)

    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "config/config.yaml").read_text())

    def write_config(self, config: dict[str, Any]) -> None:
        (self.root / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        config = self.config()
        change(config)
        self.write_config(config)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]

    def start(self, *arguments: str, command: list[str] | None = None, tracking: str = "off") -> subprocess.Popen[str]:
        return subprocess.Popen(
            command or self.command(*arguments),
            cwd=self.root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SELFDISTILL_TRACKING": tracking},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A test run in the background may have been told to ignore Ctrl-C; a user's shell has not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, expect: int | None = 0) -> str:
        """Run snakemake to its end; returns its output. `expect` is the exit code asked for (None: any)."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=600)
        assert expect is None or process.returncode == expect, output
        return output

    def edit_runtime(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.root / "config/runtime.yaml"
        runtime = yaml.safe_load(path.read_text())
        change(runtime)
        path.write_text(yaml.safe_dump(runtime, sort_keys=False))

    def edit_profile(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.root / "profiles" / name / "config.yaml"
        profile = yaml.safe_load(path.read_text())
        change(profile)
        path.write_text(yaml.safe_dump(profile, sort_keys=False))

    def cli(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "selfdistill.cli", *arguments],
            cwd=self.root, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def attempts(self) -> Counter[str]:
        """How often each artifact was computed, from its provenance; a restored seal is no computation."""
        counts: Counter[str] = Counter()
        for path in self.root.glob("results/artifacts/*/*/provenance.json"):
            counts[f"{path.parent.parent.name}/{path.parent.name}"] = len(json.loads(path.read_text())["attempts"])
        return counts

    def artifacts(self, stage: str) -> list[Path]:
        return sorted((self.root / "results/artifacts" / stage).glob("*-????????????"))

    def manifests(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.root)): p.read_bytes() for p in self.root.glob("results/artifacts/*/*/manifest.json")
        }
