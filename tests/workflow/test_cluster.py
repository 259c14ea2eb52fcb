"""The toy study through a real Slurm of two nodes, with everything that goes wrong on a cluster.

The first test runs all of it on Slurm. Each of the others starts from the finished project, with a longer training to
be caught in the act, and must end in the bytes and in the table of an undisturbed run on this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_daemons import Cluster, wait_for
from slurm_project import attempts_of, fill_site, on_slurm, run_on_slurm, steps_done_twice, steps_in_order
from workflow_helpers import TARGET
from workflow_project import Project

pytestmark = pytest.mark.cluster

STEPS, LONG_STEPS = 100, 300
STATE_EVERY = 5


def lengthen(steps: int) -> Callable[[dict], None]:
    """A training of half a minute, or of more than a minute."""

    def change(config):
        config["recipes"]["toy_grpo"] |= {
            "steps": steps, "checkpoint_every": steps, "prompts_per_step": 16, "prompts_per_update": 16
        }  # fmt: skip

    return change


def save_often(runtime):
    runtime["models"]["toy"]["all"]["settings"]["state_every_steps"] = STATE_EVERY


def on_this_machine(finished: Project, root: Path, steps: int) -> Project:
    project = finished.copy(root / "project")
    project.edit(lengthen(steps))
    project.run(TARGET)
    return project


@pytest.fixture(scope="session")
def undisturbed(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return on_this_machine(finished, tmp_path_factory.mktemp("undisturbed"), STEPS)


@pytest.fixture(scope="session")
def undisturbed_long(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return on_this_machine(finished, tmp_path_factory.mktemp("long"), LONG_STEPS)


@pytest.fixture
def study(finished: Project, tmp_path: Path, cluster: Cluster) -> Project:
    """A copy of the finished project with the training still to be done, on the test cluster."""
    project = fill_site(finished.copy(tmp_path / "project"))
    project.edit(lengthen(STEPS))
    project.edit_runtime(save_often)
    return project


@pytest.fixture(autouse=True)
def all_nodes_up(cluster: Cluster) -> Iterator[None]:
    yield
    for node, state in cluster.states().items():
        if not state.startswith(("idle", "mixed", "allocated", "completing")):
            cluster.revive(node)


class Run:
    """A head process that trains on Slurm, to be caught in the act."""

    def __init__(self, project: Project, cluster: Cluster, *arguments: str) -> None:
        self.project, self.cluster = project, cluster
        project.run("-n", TARGET)
        self.artifact = next(path for path in project.artifacts("train") if not (path / "manifest.json").is_file())
        self.target = str((self.artifact / "manifest.json").relative_to(project.root))
        self.known = {job["JobId"] for job in cluster.jobs()}
        self.output = (project.root / "head.txt").open("w+")
        self.process = subprocess.Popen(
            on_slurm(project, self.target, *arguments), cwd=project.root, text=True, start_new_session=True,
            env=os.environ | {"SELFDISTILL_TRACKING": "off"}, stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, condition: Callable[[], object], what: str, seconds: float = 300) -> None:
        wait_for(lambda: condition() or self.process.poll() is not None, seconds, what)
        assert condition(), f"the workflow ended before {what}:\n{self.said()}"

    def until_step(self, step: int) -> None:
        self.until(lambda: max(steps_in_order(self.artifact), default=0) >= step, f"step {step}")

    def jobs(self) -> list[dict[str, str]]:
        """The Slurm jobs of the training, oldest first."""
        return [job for job in self.cluster.jobs("train") if job["JobId"] not in self.known]

    def finish(self, seconds: float = 600) -> None:
        self.process.wait(seconds)
        assert self.process.returncode == 0, self.said()

    def said(self) -> str:
        return Path(self.output.name).read_text()


def assert_equal_to(undisturbed: Project, project: Project, artifact: Path) -> None:
    """The table that follows from the training, and every payload, are those of the undisturbed run."""
    project.run(TARGET)
    assert (project.root / TARGET).read_text() == (undisturbed.root / TARGET).read_text()
    ours, theirs = results(project), results(undisturbed)
    assert ours == theirs
    done = steps_in_order(artifact)
    assert set(done) == set(range(1, done[-1] + 1))
    assert "0 problems" in project.cli("verify")


def results(project: Project) -> dict[str, bytes]:
    """Everything that a spec decides: payloads without the scalars of the clock."""
    files = project.root.glob("results/artifacts/*/*/payload/**/*")
    return {str(p.relative_to(project.root)): p.read_bytes() for p in files if p.is_file()}


def test_the_toy_study_from_nothing_equals_the_run_on_this_machine(cluster, finished, tmp_path, project_root):
    project = fill_site(Project.create(tmp_path / "project", project_root))
    output = run_on_slurm(project, TARGET)
    assert "Error" not in output
    assert results(project) == results(finished)
    assert (project.root / TARGET).read_text() == (finished.root / TARGET).read_text()
    assert set(project.attempts().values()) == {1}
    jobs = {attempt["slurm_job"] for path in artifacts(project) for attempt in attempts_of(path)}
    assert len(jobs) == len(artifacts(project)) and None not in jobs
    assert "0 problems" in project.cli("verify")


def artifacts(project: Project) -> list[Path]:
    return [path.parent for path in project.root.glob("results/artifacts/*/*/provenance.json")]


def cancelled(cluster: Cluster, job: dict[str, str]) -> None:
    subprocess.run(["scancel", job["JobId"]], check=True)


def requeued(cluster: Cluster, job: dict[str, str]) -> None:
    cluster.scontrol("requeue", job["JobId"])
    cluster.start_at_once(job["JobId"])


def pre_empted(cluster: Cluster, job: dict[str, str]) -> None:
    cluster.scontrol("update", "partitionname=gpu", "GraceTime=0")
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"]
    subprocess.run(urgent, check=True, capture_output=True)
    cluster.start_at_once(job["JobId"])


def robbed_of_its_node(cluster: Cluster, job: dict[str, str]) -> None:
    cluster.scontrol("update", f"nodename={job['NodeList']}", "state=down", "reason=test")
    cluster.start_at_once(job["JobId"])


def cut_off_from_power(cluster: Cluster, job: dict[str, str]) -> None:
    cluster.kill_node(job["NodeList"])
    cluster.start_at_once(job["JobId"])


def test_a_training_that_everything_happens_to_ends_in_the_same_bytes(study, cluster, undisturbed):
    """Cancelled (Snakemake starts it again), then four losses after which Slurm starts the same job again."""
    run = Run(study, cluster)
    losses = [cancelled, requeued, pre_empted, robbed_of_its_node, cut_off_from_power]
    for number, happens in enumerate(losses, start=1):
        run.until(lambda number=number: len(attempts_of(run.artifact)) == number, f"attempt {number}")
        run.until_step(12 * number)
        before = run.jobs()[-1]
        happens(cluster, before)
        run.until(lambda: run.jobs()[-1]["JobState"] == "RUNNING", f"a start after it was {happens.__name__}")
        assert (run.jobs()[-1]["JobId"] == before["JobId"]) == (happens is not cancelled)
        if before["NodeList"] != run.jobs()[-1]["NodeList"]:
            cluster.revive(before["NodeList"])
    run.finish()
    assert [(job["JobState"], job["Restarts"]) for job in run.jobs()] == [("CANCELLED", "0"), ("COMPLETED", "4")]
    assert len(attempts_of(run.artifact)) == len(losses) + 1
    # A lost node leaves no time to save.
    assert steps_done_twice(run.artifact) <= 2 * STATE_EVERY
    assert_equal_to(undisturbed, study, run.artifact)


def test_a_training_with_a_grace_period_has_left_before_it_is_pre_empted(study, cluster, undisturbed):
    run = Run(study, cluster)
    run.until_step(12)
    cluster.scontrol("update", "partitionname=gpu", "GraceTime=20")
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"]
    subprocess.run(urgent, check=True, capture_output=True)
    run.finish()
    assert [(job["JobState"], job["Restarts"]) for job in run.jobs()] == [("FAILED", "0"), ("COMPLETED", "0")]
    assert steps_done_twice(run.artifact) == 0
    assert_equal_to(undisturbed, study, run.artifact)


def limit_training(study: Project, minutes: int, warning_seconds: int) -> None:
    def change(runtime):
        needs = runtime["models"]["toy"].setdefault("train", {}).setdefault("resources", {})
        needs |= {"runtime_minutes": minutes, "warning_seconds": warning_seconds}

    study.edit(lengthen(LONG_STEPS))
    study.edit_runtime(change)


def test_a_time_limit_is_heard_of_before_it_comes(study, cluster, undisturbed_long):
    limit_training(study, minutes=2, warning_seconds=60)
    run = Run(study, cluster, "--retries", "8")
    run.finish(900)
    states = [job["JobState"] for job in run.jobs()]
    assert len(states) > 1 and states[-1] == "COMPLETED" and set(states[:-1]) == {"FAILED"}
    assert "interrupted: training stopped on request" in (run.artifact / "log.txt").read_text()
    assert steps_done_twice(run.artifact) == 0
    assert_equal_to(undisturbed_long, study, run.artifact)


def test_a_training_killed_at_its_time_limit_goes_on_where_it_stopped(study, cluster, undisturbed_long):
    limit_training(study, minutes=1, warning_seconds=0)
    run = Run(study, cluster, "--retries", "8")
    run.finish(900)
    states = [job["JobState"] for job in run.jobs()]
    assert states[-1] == "COMPLETED" and "TIMEOUT" in states
    assert steps_done_twice(run.artifact) <= STATE_EVERY * (len(states) - 1)
    assert_equal_to(undisturbed_long, study, run.artifact)


def test_a_killed_head_process_is_started_again_and_finds_its_training(study, cluster, undisturbed):
    run = Run(study, cluster)
    run.until_step(12)
    os.killpg(run.process.pid, signal.SIGKILL)
    study.run("--unlock", run.target)
    # The job is still there: the second one waits for it and finds its result.
    time.sleep(1)
    output = run_on_slurm(study, run.target)
    assert "Error" not in output
    assert len(attempts_of(run.artifact)) == 1
    assert_equal_to(undisturbed, study, run.artifact)
