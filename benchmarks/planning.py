"""Plans of a thousand jobs, and what a job costs beside its own work, against bare Snakemake.

    python benchmarks/planning.py [--json] [--repeats 3] [--seeds 200] [--jobs 12]

Plans: `snakemake -n` of the toy GRPO experiment with many seeds (five jobs a seed: training, two evaluations, two
counts of words), against a Snakefile with the same jobs, edges, logs, threads and resources and no package behind it.
The first dry run freezes every spec; the second finds them.

Jobs: data sets of a few problems, made one after another by new processes (no warm start), against jobs that start the
same Python, import the same libraries and write a file.

Goal: at most 1.5 times the time and memory of the bare side, so a ratio of at least 0.67.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import yaml
from harness import Pair, Quantity, options, run

ROOT = Path(__file__).resolve().parents[1]
TABLE = "results/ood/toy_grpo.csv"
QUANTITIES = (Quantity("time", "s", "lower"), Quantity("peak memory", "MiB", "lower"))
#: What both sides read; the machine's own profiles have nothing to say here.
OPTIONS = ("--cores", "1", "--workflow-profile", "profiles/default")

BARE_PLAN = """\
SEEDS, BENCHMARKS = range({seeds}), ["id", "ood"]

rule table:
    input: expand("out/epistemics/{{seed}}-{{benchmark}}.json", seed=SEEDS, benchmark=BENCHMARKS)
    output: "{table}"
    localrule: True
    shell: "touch {{output}}"

rule train:
    output: "out/train/{{seed}}.json"
    log: "logs/train/{{seed}}.log"
    threads: lambda wildcards: 1
    resources: mem_mb=lambda wildcards, attempt: 1000 * attempt, runtime=lambda wildcards: 60
    params: label=lambda wildcards: wildcards.seed
    message: "Train {{params.label}}"
    shell: "touch {{output}}"

rule evaluate:
    input: lambda wildcards: ancient(f"out/train/{{wildcards.seed}}.json")
    output: "out/evaluate/{{seed}}-{{benchmark}}.json"
    log: "logs/evaluate/{{seed}}-{{benchmark}}.log"
    threads: lambda wildcards: 1
    resources: mem_mb=lambda wildcards, attempt: 1000 * attempt, runtime=lambda wildcards: 60
    params: label=lambda wildcards: wildcards.seed
    message: "Evaluate {{params.label}}"
    shell: "touch {{output}}"

rule epistemics:
    input: lambda wildcards: ancient(f"out/evaluate/{{wildcards.seed}}-{{wildcards.benchmark}}.json")
    output: "out/epistemics/{{seed}}-{{benchmark}}.json"
    log: "logs/epistemics/{{seed}}-{{benchmark}}.log"
    threads: lambda wildcards: 1
    resources: mem_mb=lambda wildcards, attempt: 1000 * attempt, runtime=lambda wildcards: 60
    params: label=lambda wildcards: wildcards.seed
    message: "Count {{params.label}}"
    shell: "touch {{output}}"
"""
BARE_JOBS = """\
rule all:
    input: expand("out/{{job}}.json", job=range({jobs}))

rule job:
    output: "out/{{job}}.json"
    log: "logs/{{job}}.log"
    shell: "{python} job.py {{output}} {{log}}"
"""


def project(folder: Path, change) -> Path:
    """A project directory with the shipped workflow, its config changed."""
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Snakefile", "stages.lock.json"):
        shutil.copy(ROOT / name, folder)
    config = yaml.safe_load((folder / "config/config.yaml").read_text())
    change(config)
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    runtime = (folder / "config/runtime.yaml").read_text()
    (folder / "config/runtime.yaml").write_text(runtime.replace("warm_start: true", "warm_start: false"))
    return folder


def bare(folder: Path, snakefile: str) -> Path:
    folder.mkdir()
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    (folder / "Snakefile").write_text(snakefile)
    return folder


def snakemake(folder: Path, *arguments: str) -> tuple[float, float]:
    """Seconds from the start of Snakemake's process to its end, and its peak memory (MiB)."""
    start = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *OPTIONS, *arguments],
        cwd=folder, env=os.environ | {"SELFDISTILL_TRACKING": "off"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    # The peak of this process counts as well, but it is far below that of Snakemake.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"snakemake {' '.join(arguments)} ended with code {process.returncode}")
    return perf_counter() - start, usage.ru_maxrss / 1024


def dry_run(folder: Path, is_first: bool) -> tuple[float, float]:
    if is_first:
        # Set aside, not removed: ext4 is slow to create files for a minute after many were removed.
        aside = Path(tempfile.mkdtemp(dir=folder.parent))
        for made in filter(Path.exists, (folder / "results", folder / ".snakemake")):
            made.rename(aside / made.name)
    return snakemake(folder, "-n", "-q", "--", TABLE)


def seconds_per_job(folder: Path, targets: list[str]) -> float:
    """Wall clock of making all targets one after another, by target."""
    for target in targets:
        (folder / target).unlink(missing_ok=True)
        (folder / target).with_name(".sealed.json").unlink(missing_ok=True)
    seconds, _ = snakemake(folder, "-q", "--", *targets)
    return seconds / len(targets)


def imports_of_a_job(folder: Path, target: str) -> str:
    """A program that imports every module, but this package's, that the stage of a target loads, and writes a file."""
    from selfdistill.run import launch

    code = (
        f"import sys, {launch.__name__} as launch; code = launch.run(sys.argv[1:]); "
        "print(*sys.modules, file=open('modules.txt', 'w')); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, Path(target).parts[2], target, "--log", "logs/x.log"]
    subprocess.run(command, cwd=folder, check=True)
    loaded = [
        name
        for name in (folder / "modules.txt").read_text().split()
        if not any(part.startswith("_") for part in name.split("."))
        and name.split(".")[0] not in ("selfdistill", "sitecustomize", "six")
    ]
    return "\n".join(
        ["import contextlib, importlib, sys", f"for name in {loaded!r}:"]
        + ["    with contextlib.suppress(ImportError):", "        importlib.import_module(name)"]
        + ["for path in sys.argv[1:]:", "    open(path, 'w').write('x')", ""]
    )


def many_seeds(seeds: int):
    def change(config: dict) -> None:
        config["experiments"]["toy_grpo"] |= {"seeds": list(range(seeds)), "coverage": None}

    return change


def many_small_data_sets(jobs: int):
    def change(config: dict) -> None:
        for job in range(jobs):
            source = {"kind": "toy", "families": ["id"], "count": 8, "seed": 5000 + job}
            config["datasets"][f"small_{job}"] = {"source": source}
            config["benchmarks"][f"small_{job}"] = {"dataset": f"small_{job}", "domain": "in", "samples": 1}
        config["experiments"]["toy_grpo"] |= {"benchmarks": [f"small_{job}" for job in range(jobs)], "coverage": None}

    return change


def pairs(chosen, folder: Path):
    ours = project(folder / "plan", many_seeds(chosen.seeds))
    theirs = bare(folder / "bare-plan", BARE_PLAN.format(seeds=chosen.seeds, table=TABLE))
    for name, is_first in (("first dry run", True), ("dry run again", False)):
        yield Pair(
            f"{name} of {5 * chosen.seeds} jobs", "bare Snakefile", QUANTITIES,
            ours=lambda is_first=is_first: dry_run(ours, is_first),
            peer=lambda is_first=is_first: dry_run(theirs, is_first),
            warm_up=not is_first,
        )  # fmt: skip
    jobs = project(folder / "jobs", many_small_data_sets(chosen.jobs))
    snakemake(jobs, "-n", "-q", "--", TABLE)
    targets = [
        str((path.parent / "manifest.json").relative_to(jobs))
        for path in sorted(jobs.glob("results/artifacts/dataset/id-8-*/spec.json"))
    ]
    assert len(targets) == chosen.jobs
    bare_jobs = bare(folder / "bare-jobs", BARE_JOBS.format(jobs=chosen.jobs, python=sys.executable))
    (bare_jobs / "job.py").write_text(imports_of_a_job(jobs, targets[0]))
    bare_targets = [f"out/{job}.json" for job in range(chosen.jobs)]
    yield Pair(
        f"{chosen.jobs} short jobs, by job", "bare jobs with the same imports", [Quantity("time", "s", "lower")],
        ours=lambda: seconds_per_job(jobs, targets), peer=lambda: seconds_per_job(bare_jobs, bare_targets),
        warm_up=False,
    )  # fmt: skip


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--seeds", type=int, default=200, help="seeds, five jobs each (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=12, help="short jobs that are run (default: %(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(pairs(chosen, Path(folder)), chosen)


if __name__ == "__main__":
    main()
