"""Plans of the shipped config: what a user reads before anything runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import selfdistill
from workflow_helpers import TARGET, record_deepscaler
from workflow_project import Project


@pytest.fixture
def shipped(tmp_path, project_root) -> Project:
    """The project as it is shipped, without results."""
    project = Project.create(tmp_path / "project", project_root)
    shutil.copy(project_root / "config/config.yaml", project.root / "config/config.yaml")
    return project


def test_the_slurm_profile_plans_the_papers_run_without_a_network(shipped):
    command = [*shipped.command()[:3], "-n", "--profile", "slurm", "results/ood/qwen3_sdpo.csv"]
    process = shipped.start(command=command)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (line,) = [line for line in output.splitlines() if ": Train " in line]
    assert "qwen3-8b-dapo-math-17k-sdpo-solution-seed0" in line
    assert line.endswith("for qwen3_sdpo (4 GPUs, 400 GB, 48 h)")
    assert "Reason:" not in output
    assert "warning: profiles/slurm/config.yaml: slurm_account and slurm_partition are empty" in output


def test_the_executor_decides_whether_jobs_reserve_gpus(shipped, monkeypatch):
    """Not SLURM_JOB_ID: with --profile local inside an allocation, jobs share the GPUs of a machine."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    target = "results/ood/toy_grpo.csv"
    local = re.findall(r"-m selfdistill.run.launch train .*", shipped.run("-n", "-p", target))
    assert local and all(line.endswith("--warm") for line in local)
    # What a job on a cluster is started with.
    spec = min((shipped.root / "results/artifacts/train").glob("*/spec.json"))
    job = str((spec.parent / "manifest.json").relative_to(shipped.root))
    remote = re.findall(r"-m selfdistill.run.launch .*", shipped.run("-n", "-p", "--mode", "remote", job))
    assert remote and all(line.endswith("--gpus-assigned") for line in remote)


def test_several_new_targets_are_planned_by_one_command(shipped):
    """Plans are written while Snakemake builds its graph; each must be seen, whatever was listed before it."""
    targets = [f"results/{view}/{name}.csv" for view in ("ood", "curves") for name in ("toy_grpo", "toy_sdpo")]
    output = shipped.run("-n", *targets, "results/coverage/toy.csv", "results/richness/toy.csv", "results/report.html")
    assert re.search(r"^table +6$", output, re.MULTILINE), output


def test_a_named_report_is_a_target_with_all_of_its_tables(shipped):
    overlay = shipped.root / "config/mine.yaml"
    overlay.write_text("reports: {mine: {experiments: [toy_grpo], richness: [toy]}}\n")
    layered = ("-n", "--configfile", "config/mine.yaml", "--")
    output = shipped.run(*layered, "mine")
    assert re.search(r"^table +4$", output, re.MULTILINE), output
    assert re.search(r"^named_report +1$", output, re.MULTILINE), output
    assert "results/reports/mine.html" in shipped.run(*layered, "results/reports/mine.html")
    assert "unknown report `thine`. Did you mean `mine`?" in shipped.run(
        *layered, "results/reports/thine.html", expect=2
    )


@pytest.mark.parametrize(("name", "kind"), [("train", "a rule of the workflow"), ("toy_grpo", "an experiment")])
def test_a_report_has_a_name_of_its_own(shipped, name, kind):
    overlay = shipped.root / "config/mine.yaml"
    overlay.write_text(f"reports: {{{name}: {{experiments: [toy_grpo]}}}}\n")
    output = shipped.run("-n", "--configfile", "config/mine.yaml", "--", "results/report.html", expect=2)
    assert f"config/mine.yaml: `reports.{name}`: is the name of {kind} as well: choose another name." in output


def test_new_targets_behind_a_rule_of_ones_own_are_planned_too(shipped):
    rules = 'rule pair:\n    input: "results/ood/toy_sdpo.csv", "results/ood/toy_grpo.csv"\n'
    rules += 'rule chain:\n    input: "a.txt", "results/ood/toy_sft_guided.csv"\n'
    rules += (
        'rule a:\n    input: "results/ood/toy_sdpo_nothink.csv"\n    output: "a.txt"\n    shell: "touch {output}"\n'
    )
    with (shipped.root / "Snakefile").open("a") as snakefile:
        snakefile.write(rules)
    assert re.search(r"^table +4$", shipped.run("-n", "pair", "chain"), re.MULTILINE)


def test_a_changed_plan_makes_a_view_again_and_nothing_else(project):
    """The domain of a benchmark stands in the plan, and is part of no artifact."""
    project.edit(lambda config: config["benchmarks"]["toy_id"].update(domain="ood"))
    output = project.run(TARGET)
    assert re.search(r"^table +1$", output, re.MULTILINE) and re.search(r"^total +1$", output, re.MULTILINE), output
    assert ",ood," in (project.root / TARGET).read_text()


def test_a_table_of_another_version_of_the_code_is_made_again_and_nothing_else(project, monkeypatch):
    package = project.root / "src/selfdistill"
    shutil.copytree(Path(selfdistill.__file__).parent, package)
    seeds = package / "seeds.py"
    seeds.write_text(seeds.read_text().replace("LEVEL = 0.95", "LEVEL = 0.5"))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    before = (project.root / TARGET).read_text()
    output = project.run(TARGET)
    assert re.search(r"^table +1$", output, re.MULTILINE) and re.search(r"^total +1$", output, re.MULTILINE), output
    assert (project.root / TARGET).read_text() != before
    assert "Nothing to be done" in project.run(TARGET)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "results/oood/toy_sdpo.csv",
            "there is no target `results/oood/toy_sdpo.csv`. Did you mean `results/ood/",
        ),
        ("results/toy_sdpo.html", "there is no target `results/toy_sdpo.html`."),
        (
            "toy_sdpo",
            "`toy_sdpo` is an experiment; its targets are results/ood/toy_sdpo.csv, results/",
        ),
        ("toy_sdpoo", "there is no target `toy_sdpoo`."),
        ("results/ood/toy_sdpoo.csv", "unknown experiment `toy_sdpoo`. Did you mean `toy_sdpo`?"),
    ],
)
def test_an_unknown_target_is_one_line_with_the_targets_that_exist(shipped, target, message):
    output = shipped.run("-n", target, expect=None)
    (line,) = [line for line in output.splitlines() if "error" in line.lower()]
    assert line.startswith(f"error: {message}")
    assert "toy_sft_guided" in line or target in ("toy_sdpo",)
    assert "Exception" not in output
    assert "results/coverage/NAME.csv with NAME one of qwen3off, toy" in line or "experiment" in line


def test_a_dry_run_freezes_specs_and_a_second_one_touches_nothing(shipped):
    shipped.run("-n", "results/ood/toy_sdpo.csv")
    files = {path: path.stat().st_mtime_ns for path in (shipped.root / "results").rglob("*.json")}
    assert sum(path.name == "spec.json" for path in files) > 20
    shipped.run("-n", "results/ood/toy_sdpo.csv")
    assert {path: path.stat().st_mtime_ns for path in (shipped.root / "results").rglob("*.json")} == files


def test_a_key_that_appears_twice_in_an_overlay_is_an_error(shipped):
    overlay = shipped.root / "config/mine.yaml"
    overlay.write_text("report: {experiments: [toy_grpo]}\nlexicon: [wait]\nreport: {experiments: [toy_sdpo]}\n")
    output = shipped.run("-n", "--configfile", "config/mine.yaml", "--", "results/report.html", expect=2)
    assert "config/mine.yaml, line 3, is not valid YAML: key `report` appears twice" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "config/config.yaml",
            "\nfoo: [1\nbar: 2\n",
            "is not valid YAML: did not find expected ',' or ']' (while parsing",
        ),
        ("config/config.yaml", "\nmodels: {}\n", "key `models` appears twice"),
        ("config/runtime.yaml", "\ndefaults: {}\n", "key `defaults` appears twice"),
        ("config/assets.lock.yaml", "\nqwen3_8b: {}\n", "key `qwen3_8b` appears twice"),
        ("profiles/slurm/config.yaml", "\njobs: 1\n", "key `jobs` appears twice"),
    ],
)
def test_what_is_no_yaml_names_file_and_line(shipped, file, text, message):
    path = shipped.root / file
    lines = len(path.read_text().splitlines())
    path.write_text(path.read_text() + text)
    output = shipped.run("-n", expect=2)
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert re.match(rf"error: {file}, line ({lines + 2}|{lines + 3}), is not valid YAML: ", line) and message in line
    assert "Traceback" not in output


def test_the_experiment_about_wait_is_one_target(shipped):
    """Seven arms, three seeds (docs/cures.md 7); the digest of the problems is there as `assets fetch` records it."""
    target = ("-n", "--configfile", "config/wait.yaml", "--", "wait_deepseek")
    refused = shipped.run(*target, expect=2)
    assert "`selfdistill assets fetch deepscaler_preview` records them" in refused and "Traceback" not in refused
    record_deepscaler(shipped.root)
    output = shipped.run(*target)
    assert re.search(r"^train +21$", output, re.MULTILINE), output
    assert re.search(r"^named_report +1$", output, re.MULTILINE), output
