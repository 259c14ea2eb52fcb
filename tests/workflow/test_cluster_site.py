"""A user's site on a real Slurm: what it must say, what jobs then ask for, refusals, and training on two nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from slurm_project import attempts_of, fill_site, run_on_slurm
from workflow_helpers import TARGET, set_learning_rate
from workflow_project import Project

pytestmark = pytest.mark.cluster


@pytest.fixture
def fresh(tmp_path: Path, project_root: Path, cluster) -> Project:
    """A project without results; its specs are frozen."""
    project = fill_site(Project.create(tmp_path / "project", project_root))
    project.run("-n", TARGET)
    return project


def first_data_set(project: Project) -> tuple[Path, str]:
    artifact = project.artifacts("dataset")[0]
    return artifact, str((artifact / "manifest.json").relative_to(project.root))


def needs(**resources) -> dict:
    return {"resources": {"mem_mb": 500, "runtime_minutes": 5, "cpus": 1, **resources}}


def test_nothing_is_submitted_before_the_site_is_filled_in(fresh, cluster):
    fresh.edit_profile("slurm", lambda profile: profile["default-resources"].update(slurm_account=""))
    known = len(cluster.jobs())
    _, target = first_data_set(fresh)
    output = run_on_slurm(fresh, target, expect=None)
    assert "error: profiles/slurm/config.yaml: slurm_account is empty. Fill in the block `Your site`" in output
    assert "Traceback" not in output
    assert len(cluster.jobs()) == known
    fill_site(fresh)
    run_on_slurm(fresh, target)
    assert len(cluster.jobs()) == known + 1


@pytest.mark.parametrize("form", ["gpus", "gres"])
def test_a_job_gets_its_gpus_cores_memory_and_time_in_either_form(fresh, cluster, form):
    fill_site(fresh, gpus_as=form)
    fresh.edit_runtime(lambda runtime: runtime["stages"].update(dataset=needs(gpus=2, cpus=3, mem_mb=700)))
    artifact, target = first_data_set(fresh)
    run_on_slurm(fresh, target)
    (attempt,) = attempts_of(artifact)
    assert attempt["devices"]["cuda"] == "0,1"
    job = next(job for job in cluster.jobs() if job["JobId"] == attempt["slurm_job"])
    assert (job["NumCPUs"], job["MinMemoryNode"], job["TimeLimit"]) == ("3", "700M", "00:05:00")
    assert (job["Partition"], job["Account"]) == ("gpu", "(null)")
    assert job["NumNodes"] == "1"


def test_gpus_of_several_nodes_are_never_mixed_into_one_job(fresh, cluster):
    """Three GPUs exist, but not on one node: Slurm refuses, and the command says so."""
    fresh.edit_runtime(lambda runtime: runtime["stages"].update(dataset=needs(gpus=3)))
    _, target = first_data_set(fresh)
    output = run_on_slurm(fresh, target, "--retries", "0", expect=1)
    assert "Requested node configuration is not available" in output


def test_a_mistake_is_met_once_and_its_retries_say_so_at_once(fresh, cluster):
    problems = fresh.root / "mine.jsonl"
    problems.write_text("".join(json.dumps({"question": f"{n}+{n}?", "answer": str(2 * n)}) + "\n" for n in range(9)))
    fresh.cli("assets", "add", "mine", str(problems))

    def use(config):
        config["datasets"]["toy_id"] = {
            "source": {"kind": "asset", "asset": "mine", "fields": {"question": "question", "answer": "answer"}}
        }

    fresh.edit(use)
    fresh.edit_runtime(lambda runtime: runtime["stages"].update(dataset=needs(gpus=2)))
    fresh.run("-n", TARGET)
    artifact = next(path for path in fresh.artifacts("dataset") if path.name.startswith("mine-"))
    target = str((artifact / "manifest.json").relative_to(fresh.root))
    known = {job["JobId"] for job in cluster.jobs()}
    kept = problems.read_text()
    problems.unlink()
    run_on_slurm(fresh, target, "--retries", "1", expect=1)
    first, second = [job for job in cluster.jobs("dataset") if job["JobId"] not in known]
    log = (artifact / "log.txt").read_text()
    assert log.count("does not exist") == 2 and log.count("not tried again, because a retry cannot help") == 1
    assert "gpu" in first["TresPerJob"] and "gpu" not in second.get("TresPerJob", "")
    problems.write_text(kept)
    run_on_slurm(fresh, target)
    assert (artifact / "manifest.json").is_file() and not (artifact / "refused.json").exists()


def test_a_training_runs_on_two_nodes_and_learns_what_one_process_learns(finished, cluster, tmp_path):
    one = finished.copy(tmp_path / "one")
    two = fill_site(finished.copy(tmp_path / "two"))
    for project in (one, two):
        project.edit(set_learning_rate(1e-3))

    def spread(runtime):
        runtime["models"]["toy"]["train"] = needs(nodes=2, gpus=1, cpus=2, mem_mb=4000)
        runtime["models"]["toy"]["train"]["settings"] = {"processes": 2}

    two.edit_runtime(spread)
    one.run(TARGET)
    run_on_slurm(two, TARGET)
    (artifact,) = [
        path for path in two.artifacts("train") if len(attempts_of(path)) and path.name not in names(finished)
    ]
    (attempt,) = attempts_of(artifact)
    job = next(job for job in cluster.jobs("train") if job["JobId"] == attempt["slurm_job"])
    assert job["NumNodes"] == "2" and "gres:gpu:1" in job["TresPerNode"]
    ranks = {path.name.split(".")[-2] for path in two.root.glob("logs/train/*.rank*.log")}
    assert ranks == {"rank1", "rank2", "rank3"}
    ours, theirs = (scalars(project.root / artifact.relative_to(two.root)) for project in (two, one))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name in ("loss", "grad_norm", "reward_mean", "completion_tokens_mean"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-3, abs=1e-5)


def names(project: Project) -> set[str]:
    return {path.name for path in project.artifacts("train")}


def scalars(artifact: Path) -> list[dict]:
    return [json.loads(line) for line in (artifact / "metrics.jsonl").read_text().splitlines()]


def test_the_doctor_of_the_test_cluster_is_content(fresh, cluster):
    output = fresh.cli("doctor")
    assert "its controller answers" in output and "off; the profile uses squeue" in output
    assert "account none, partition gpu" in output
    profile = yaml.safe_load((fresh.root / "profiles/slurm/config.yaml").read_text())
    assert profile["slurm-status-command"] == "squeue"
