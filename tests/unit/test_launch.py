"""What every stage shares: seal, lock, provenance, exit codes, one line for a user's mistake."""

import errno
import json
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.files import key_of
from selfdistill.run import launch
from selfdistill.run.job import in_words
from selfdistill.run.training_processes import run_stage
from selfdistill.run.watchdog import Watchdog
from selfdistill.schema.errors import Interrupted, UserError


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A planned artifact of stage sample in a project directory of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/runtime.yaml").write_text("defaults: {settings: {threads: 1}}\n")
    spec = make_frozen_spec("sample", {"distinct": 8, "repeats": 1, "seed": 0}, {})
    folder = tmp_path / "results/artifacts/sample" / f"x-{key_of(spec)}"
    freeze(folder, spec)
    return Artifact.open(folder)


@pytest.fixture
def stage(monkeypatch):
    """Puts a function in the place of the stage's module."""

    def install(function, **attributes):
        module = types.ModuleType("selfdistill.stages.sample")
        module.main = function
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, "selfdistill.stages.sample", module)

    return install


def run(artifact):
    return launch.run(["sample", str(artifact.manifest_path), "--log", "logs/x.log"])


def write_payload(job):
    (job.artifact.payload / "x").write_text("x")
    return {"n": 1}


def raising(error):
    def main(job):
        (job.artifact.payload / "half").write_text("half")
        raise error

    return main


def test_a_stage_seals_its_payload_and_records_where_it_ran(artifact, stage):
    stage(write_payload)
    assert run(artifact) == 0
    assert Artifact.open(artifact.folder).summary == {"n": 1}
    (attempt,) = json.loads((artifact.folder / "provenance.json").read_text())["attempts"]
    assert attempt["sealed"] and attempt["finished"] and attempt["runtime"]["threads"] == 1
    assert attempt["libraries"]["torch"]
    assert "sealed" in (artifact.folder / "log.txt").read_text()


def test_a_sealed_artifact_is_not_computed_again(artifact, stage):
    stage(write_payload)
    run(artifact)
    artifact.manifest_path.unlink()
    stage(raising(AssertionError("computed again")))
    assert run(artifact) == 0
    assert artifact.is_sealed


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("field x is wrong"), 2, "error: field x is wrong"),
        (Interrupted("state saved"), 75, "interrupted: state saved"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (OSError(errno.ENOSPC, "No space left on device", "payload/x"), 2, "the disk is full (payload/x)"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 2, "the disk is full. Free space"),
        (
            OSError(errno.EROFS, "Read-only file system", "payload/x"),
            2,
            "payload/x cannot be read or written",
        ),
    ],
)
def test_expected_ends_give_one_line_and_their_own_code(artifact, stage, capsys, error, code, message):
    stage(raising(error))
    assert run(artifact) == code
    output = capsys.readouterr().err
    assert message in output and "Traceback" not in output
    assert not artifact.is_sealed and not artifact.seal_path.exists()


def test_a_full_disk_in_one_of_several_training_processes_is_one_line(artifact, stage):
    artifact.payload.mkdir(parents=True)
    stage(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert run_stage(SimpleNamespace(artifact=artifact)) == ({"error": "the disk is full. Free space, run again."}, 2)
    stage(raising(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        run_stage(SimpleNamespace(artifact=artifact))


def test_a_log_that_cannot_be_written_is_one_line(artifact, stage, capsys, monkeypatch):
    stage(write_payload)

    def refused(tee):
        raise OSError(errno.EACCES, "Permission denied", "x.log")

    monkeypatch.setattr("selfdistill.run.job.Tee.__enter__", refused)
    assert run(artifact) == 2
    assert capsys.readouterr().err == (
        "error: x.log cannot be read or written: Permission denied. Correct its permissions, run again.\n"
    )


def test_a_changed_file_in_another_encoding_does_not_stop_a_stage(artifact, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    Path("notes.txt").write_bytes(b"caf\n")
    for arguments in (["init", "-q"], ["add", "notes.txt"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    Path("notes.txt").write_bytes(b"caf\xe9\n")
    stage(write_payload)
    assert run(artifact) == 0
    (attempt,) = json.loads((artifact.folder / "provenance.json").read_text())["attempts"]
    assert len(attempt["commit"]) == 40 and len(attempt["dirty"]) == 12


def test_a_bug_shows_its_traceback(artifact, stage, capsys):
    stage(raising(ZeroDivisionError("oops")))
    assert run(artifact) == 1
    assert "Traceback" in capsys.readouterr().err


def test_leftovers_of_a_failed_attempt_are_gone_unless_the_stage_resumes(artifact, stage):
    stage(raising(UserError("no")))
    run(artifact)
    stage(lambda job: {"left": (job.artifact.payload / "half").exists()} | write_payload(job), RESUMES=True)
    run(artifact)
    assert Artifact.open(artifact.folder).summary["left"]
    artifact.unseal()
    stage(raising(UserError("no")))
    run(artifact)
    stage(lambda job: {"left": (job.artifact.payload / "half").exists()} | write_payload(job))
    run(artifact)
    assert not Artifact.open(artifact.folder).summary["left"]


def test_two_launches_compute_an_artifact_once(artifact, stage, capsys):
    started, calls = threading.Event(), []

    def slow(job):
        calls.append(1)
        started.set()
        second.join(0.5)
        return write_payload(job)

    stage(slow)
    codes = []
    second = threading.Thread(target=lambda: (started.wait(), codes.append(second_run())))

    def second_run():
        from selfdistill.run.job import Shard, Tee

        with Tee(artifact.folder.parent / "second.log", "second") as tee, launch._locked(artifact, tee, Shard()):
            return artifact.is_sealed

    second.start()
    assert run(artifact) == 0
    second.join()
    assert codes == [True] and calls == [1]
    assert "waiting: another process is computing" in capsys.readouterr().err


def test_the_wrong_stage_is_refused(artifact, capsys):
    assert launch.run(["dataset", str(artifact.manifest_path), "--log", "logs/x.log"]) == 2
    assert "is an artifact of stage sample" in capsys.readouterr().err


def test_a_hang_ends_with_its_phase_and_the_stacks(tmp_path):
    code = """
import sys, time
from pathlib import Path
from selfdistill.run.watchdog import Watchdog
with Watchdog(0.4, lambda text: print(text, flush=True), Path(sys.argv[1])) as watchdog:
    watchdog.heartbeat("step 3: updates")
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "hang.txt"], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 70
    assert "no heartbeat" in done.stdout and "`step 3: updates`" in done.stdout
    assert "time.sleep" in (tmp_path / "hang.txt").read_text() or "line 7" in (tmp_path / "hang.txt").read_text()


def test_signs_of_life_keep_a_slow_job_going(tmp_path):
    said = []
    with Watchdog(0.3, said.append, tmp_path / "hang.txt") as watchdog:
        for _ in range(6):
            time.sleep(0.1)
            watchdog.heartbeat("phase")
    assert said == []


def test_each_attempt_records_the_names_that_the_artifact_had_when_it_started(artifact, stage):
    def fail(job):
        raise Interrupted("stopped")

    for function, experiment in ((fail, "first"), (write_payload, "second")):
        (artifact.folder / "names.json").write_text(json.dumps({"experiments": [experiment]}))
        stage(function)
        run(artifact)
    attempts = json.loads((artifact.folder / "provenance.json").read_text())["attempts"]
    assert [attempt["names"] for attempt in attempts] == [{"experiments": ["first"]}, {"experiments": ["second"]}]


def test_what_a_stage_notes_is_in_the_provenance_of_the_attempt(artifact, stage):
    def main(job):
        job.notes["files_without_digest_in_lock"] = ["x"]
        return write_payload(job)

    stage(main)
    run(artifact)
    (attempt,) = json.loads((artifact.folder / "provenance.json").read_text())["attempts"]
    assert attempt["files_without_digest_in_lock"] == ["x"] and attempt["sealed"]


def test_counts_are_told_in_words():
    told = in_words(
        {"problems": 64, "mean_tokens": 20480.51234, "rate": 0.0, "outcomes": {"correct": 6}, "missing": {}}
    )
    assert told == "problems 64, mean tokens 20480.5, rate 0, outcomes (correct 6), missing (none)"
