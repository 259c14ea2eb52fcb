"""gc, discard, undo and pin: nothing that runs, is pinned or is needed goes; what goes can be brought back."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from selfdistill.artifacts.lineage import closure, descendants, last_attempt
from selfdistill.artifacts.lock import hold_lock, lock_path
from selfdistill.artifacts.pins import check_pins, read_pins
from selfdistill.artifacts.store import ROOT, Artifact, all_artifacts
from selfdistill.artifacts.trash import TRASH, removals
from selfdistill.artifacts.verification import verify
from selfdistill.cli import app, main
from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.used_configs import check_used_configs, read_used_configs, record_used_config
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import UserError
from tracking_project import CONFIG, fill, of_stage, plan


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two finished experiments, of which the config names only tiny_sdpo any more."""
    monkeypatch.chdir(tmp_path)
    plan()
    for artifact in all_artifacts():
        if not artifact.is_sealed:
            fill(artifact)
    write_config(lambda config: config["experiments"].pop("tiny_grpo"))
    return tmp_path


def write_config(change=lambda config: None, path="config/config.yaml"):
    config = copy.deepcopy(CONFIG)
    change(config)
    Path("config").mkdir(exist_ok=True)
    Path(path).write_text(yaml.safe_dump(config))


def cli(*arguments):
    done = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return done.output


def train(name="grpo"):
    return next(a for a in of_stage("train") if name in a.slug)


def content(folder=ROOT):
    """Every file with its bytes, apart from locks, the trash, and records."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith((".lock", "provenance")) and TRASH not in path.parts
    }


def problems():
    return [problem for artifact in all_artifacts() for problem in verify(artifact.folder).problems]


def needed_by_grpo_alone():
    return {a.name for a in (train(), *descendants([train()], all_artifacts()))}


# --- gc ---------------------------------------------------------------------------------------------------------------


def test_gc_moves_what_nothing_needs_to_the_trash_and_undo_brings_back_the_same_bytes(project):
    before, found, unused = content(), problems(), needed_by_grpo_alone()
    assert all(name in cli("gc") for name in unused) and content() == before
    cli("gc", "--yes")
    assert {a.name for a in all_artifacts()} & unused == set() and train("sdpo").is_sealed
    assert set(removals()[-1].artifacts) == unused
    shown = cli("undo")
    assert all(f"put back {name}" in shown for name in unused)
    assert content() == before and removals() == []
    assert problems() == found


def test_gc_leaves_alone_what_a_job_computes_and_what_that_is_made_from(project):
    running = next(a for a in of_stage("evaluate") if train().id in a.input_ids.values())
    running.manifest_path.unlink()
    with hold_lock(lock_path(running.folder)):
        shown = cli("gc", "--yes")
        assert f"{running.id} is being computed now" in shown
        assert all(artifact.folder.is_dir() for artifact in closure([running]))
    cli("gc", "--yes")
    assert not running.folder.exists()


def test_a_shard_that_runs_counts_as_well(project):
    running = next(a for a in of_stage("evaluate") if train().id in a.input_ids.values())
    with hold_lock(lock_path(running.folder, "2-of-4")):
        cli("gc", "--yes")
        assert running.folder.is_dir() and train().is_sealed
        with pytest.raises(UserError, match="is being computed now"):
            cli("discard", running.key, "--yes")


def test_gc_leaves_alone_a_job_on_a_machine_whose_locks_are_not_seen(project):
    path = train().folder / "provenance.json"
    record = json.loads(path.read_text())
    record["attempts"][-1] |= {"host": "another-node", "finished": None}
    path.write_text(json.dumps(record))
    cli("gc", "--yes")
    assert train().folder.is_dir()
    for name in ("payload", "metrics.jsonl"):
        os.utime(train().folder / name, (0, 0))
    cli("gc", "--yes")  # Silent for long: that job is dead.
    assert not [a for a in of_stage("train") if "grpo" in a.slug]


def test_nothing_is_removed_while_a_workflow_runs(project):
    lock = Path(".snakemake/locks/0.input.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    for command in (("gc", "--yes"), ("discard", train().key, "--yes")):
        with pytest.raises(UserError, match="a workflow is running in this folder.*snakemake --unlock"):
            cli(*command)
    assert train().is_sealed
    lock.unlink()
    cli("gc", "--yes")


def test_a_job_that_waited_while_gc_removed_its_artifact_computes_nothing(project):
    """It gets the lock of a folder that has gone, or of one that is planned anew; here the folder has gone."""
    artifact, code = train(), "import sys; from selfdistill.run.launch import main; sys.exit(main(sys.argv[1:]))"
    with hold_lock(lock_path(artifact.folder)):
        command = [sys.executable, "-c", code, "train", str(artifact.manifest_path), "--log", "job.log"]
        job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in job.stderr:
            if "waiting" in line:
                break
        shutil.move(artifact.folder, project / "removed")
    assert "was removed" in job.communicate(timeout=60)[1]
    assert job.returncode == 2 and not artifact.folder.exists()


def test_gc_keeps_what_was_made_with_files_merged_over_the_config(project):
    overlay = {"experiments": {"tiny_grpo": CONFIG["experiments"]["tiny_grpo"]}}
    Path("config/mine.yaml").write_text(yaml.safe_dump(overlay))
    files = ConfigFiles(["config/mine.yaml"])
    Workspace(files.merged(), files=files).view_inputs("ood", "tiny_grpo")
    shown = cli("gc", "--yes")
    assert "Kept for config/mine.yaml (last planned" in shown and train().is_sealed
    assert train().name in cli("gc", "--only-config")
    Path("config/mine.yaml").unlink()
    shown = cli("gc")
    assert "config/mine.yaml is gone" in shown and train().name in shown


def test_gc_with_other_settings_files_keeps_what_the_config_alone_needs(project):
    Path("config/other.yaml").write_text(yaml.safe_dump({"recipes": {"sdpo": {"steps": 6}}}))
    kept = {artifact.name for artifact in closure([train("sdpo")])}
    assert "Kept for config/config.yaml, too" in cli("gc", "--yes", "--configfile", "config/other.yaml")
    assert {artifact.name for artifact in all_artifacts()} >= kept
    cli("gc", "--yes", "--only-config", "--configfile", "config/other.yaml")
    assert not [artifact for artifact in of_stage("train") if "sdpo" in artifact.slug]


def test_a_used_file_that_is_no_longer_valid_keeps_everything_that_was_planned(project):
    Path("config/mine.yaml").write_text("experiments: {tiny_grpo: {seeds: [1]}}")
    files = ConfigFiles(["config/mine.yaml"])
    record_used_config(files)
    shown = cli("gc", "--yes")
    assert "is not valid any more" in shown and train().is_sealed


def test_gc_takes_several_settings_files(project):
    for name, seeds in (("one", [1]), ("two", [5])):
        experiment = CONFIG["experiments"]["tiny_grpo"] | {"seeds": seeds}
        Path(f"config/{name}.yaml").write_text(yaml.safe_dump({"experiments": {f"tiny_{name}": experiment}}))
    assert train().name in cli("gc")
    assert train().name not in cli("gc", "--configfile", "config/two.yaml", "--configfile", "config/one.yaml")


def test_gc_by_age(project):
    assert train().name not in cli("gc", "--older-than", "100000")
    path = train().folder / "provenance.json"
    record = json.loads(path.read_text())
    record["attempts"][-1]["finished"] = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    path.write_text(json.dumps(record))
    assert train().name in cli("gc", "--older-than", "2") and train().name not in cli("gc", "--older-than", "4")


def test_what_was_removed_long_ago_is_removed_for_good(project):
    cli("gc", "--yes")
    path = removals()[0].folder / "trash.json"
    cli("gc", "--yes")
    assert path.exists()
    path.write_text(path.read_text().replace(f'"when": "{datetime.now(UTC).year}', '"when": "2020'))
    assert "were removed for good" in cli("gc", "--yes")
    assert removals() == []


def test_gc_without_an_undo_period_frees_the_space_at_once(project):
    cli("gc", "--yes", "--undo-days", "0")
    assert removals() == [] and not [a for a in of_stage("train") if "grpo" in a.slug]


def test_folders_of_dry_runs_are_no_artifacts(project):
    planned = copy.deepcopy(CONFIG)
    planned["experiments"]["tiny_grpo"]["seeds"] = [7, 8]
    plan(planned)
    count = len([a for a in all_artifacts() if not a.is_sealed])
    shown = cli("gc", "--yes")
    assert f"{count} planned folders without results removed." in shown
    assert all(a.is_sealed for a in all_artifacts())
    assert len(removals()[-1].artifacts) == int(shown.rsplit(" artifacts removed", 1)[0].rsplit("\n", 1)[-1])


def test_status_does_not_count_folders_of_dry_runs_and_weighs_every_kind_of_content(project):
    plan(CONFIG | {"experiments": {"tiny_grpo": CONFIG["experiments"]["tiny_grpo"] | {"seeds": [7]}}})
    (train("sdpo").payload / "checkpoints/step-2/more").write_bytes(b"x" * 3_000_000)
    (train("sdpo").state / "step-2").mkdir(parents=True)
    (train("sdpo").state / "step-2/weights").write_bytes(b"x" * 2_000_000)
    shown = cli("status")
    sealed = {stage: sum(a.is_sealed for a in of_stage(stage)) for stage in ("train", "evaluate")}
    lines = [line.split() for line in shown.splitlines()]
    assert ["train", "sealed", str(sealed["train"])] in lines and not [x for x in lines if x[1:2] == ["planned"]]
    assert f"{sum(not a.is_sealed for a in all_artifacts())} more are planned" in shown
    assert ["train", "checkpoints", "3.0"] in lines and ["train", "resume", "states", "2.0"] in lines


def test_resume_states_of_finished_runs_go(project):
    state = train("sdpo").state
    state.mkdir()
    (state / "weights").write_text("left by a kill right after the manifest")
    assert "1 resume states of finished runs would be removed" in cli("gc") and state.is_dir()
    cli("gc", "--yes")
    assert not state.exists() and train("sdpo").is_sealed


# --- discard, undo, explain -------------------------------------------------------------------------------------------


def test_discard_can_be_undone_and_explain_says_that_it_was_there(project):
    write_config()
    before = content()
    cli("discard", train().key, "--yes")
    assert not train().is_sealed and last_attempt(train().folder)["discarded"]
    shown = cli("explain", "tiny_grpo")
    assert "was there (finished 2026-01-02T03:05), until discard removed it on" in shown
    cli("undo")
    assert content() == before and "discarded" not in last_attempt(train().folder)
    assert "Nothing would be computed" in cli("explain", "tiny_grpo")
    cli("discard", train().key, "--yes")
    shutil.rmtree(ROOT / TRASH)
    assert "until it was discarded on" in cli("explain", "tiny_grpo")


def test_explain_says_that_gc_removed_it(project):
    cli("gc", "--yes")
    write_config()
    assert "until gc removed it on" in cli("explain", "tiny_grpo")


def test_discard_refuses_while_something_below_is_computed(project):
    below = next(a for a in of_stage("evaluate") if train().id in a.input_ids.values())
    with hold_lock(lock_path(below.folder)), pytest.raises(UserError, match=f"{below.name} is being computed now"):
        cli("discard", train().key, "--yes")
    assert train().is_sealed


def test_an_unfinished_run_can_be_started_over(project):
    train().manifest_path.unlink()
    train().seal_path.unlink()
    train().state.mkdir()
    cli("discard", train().key, "--yes")
    assert not train().payload.exists() and not train().state.exists() and not train().metrics.exists()


def test_undo_does_not_replace_what_was_made_again(project):
    cli("discard", train().key, "--no-dependants", "--yes")
    fill(train())
    again = content()
    assert "was made again since" in cli("undo")
    assert content() == again and len(removals()) == 1


def test_undo_puts_nothing_under_a_job_that_has_just_started(project):
    """It has the lock, but has written nothing yet."""
    cli("discard", train().key, "--no-dependants", "--yes")
    before = content()
    with hold_lock(lock_path(train().folder)):
        assert f"{train().name} is being computed now: what was removed stays" in cli("undo")
    assert content() == before and len(removals()) == 1
    cli("undo")
    assert train().is_sealed and removals() == []


class Killed(BaseException):
    """No handler of the program sees a SIGKILL."""


@pytest.fixture
def killed(monkeypatch):
    """Call a command that is killed when it is about to move its nth file or folder to the trash, or back."""

    def run(count, *arguments):
        def rename(path, target, original=Path.rename):
            if TRASH in str(target) or TRASH in str(path):
                moves.append(path)
            if len(moves) > count:
                raise Killed
            return original(path, target)

        moves = []
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "rename", rename)
            CliRunner().invoke(app, arguments, catch_exceptions=False)

    return run


@pytest.mark.parametrize("count", range(4))
def test_undo_completes_a_discard_that_was_killed(project, killed, count):
    before, found = content(), problems()
    killed(count, "discard", train().key, "--no-dependants", "--yes")
    assert train().manifest_path.exists() == (count == 0)
    assert ("put back" if count else "nothing had been moved") in cli("undo")
    assert content() == before and problems() == found and removals() == []


@pytest.mark.parametrize("count", range(4))
def test_undo_completes_an_undo_that_was_killed(project, killed, count):
    before = content()
    cli("discard", train().key, "--no-dependants", "--yes")
    killed(count, "undo")
    assert not train().is_sealed
    assert "put back" in cli("undo")
    assert content() == before and removals() == []


def test_a_second_undo_is_about_what_is_left(project):
    """Of two artifacts one could not be put back at first; the other was discarded again since."""
    evaluation = next(a for a in all_artifacts() if a.stage == "evaluate")
    cli("discard", train().key, "--yes")
    (removal,) = removals()
    names = {"/".join(path.split("/")[:2]) for path in removal.paths}
    below = evaluation.name
    assert len(names) > 1 and below in names
    with hold_lock(lock_path(evaluation.folder)):
        assert "is being computed now" in cli("undo", removal.name)
    cli("discard", train().key, "--no-dependants", "--yes")
    said = cli("undo", removal.name)
    assert below in said and train().name not in said.replace(below, "") and not train().is_sealed
    assert removal.name not in [left.name for left in removals()]


def test_undo_seals_nothing_that_has_changed_since_a_discard_was_killed(project, killed):
    killed(2, "discard", train().key, "--no-dependants", "--yes")
    file = next(path for path in train().payload.rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[::-1] + b"x")
    assert "has other files since" in cli("undo") and not train().is_sealed


def test_a_killed_discard_that_was_repeated_is_undone_in_reverse_order(project, killed):
    before = content()
    killed(2, "discard", train().key, "--no-dependants", "--yes")
    cli("discard", train().key, "--no-dependants", "--yes")
    first, second = [removal.name for removal in removals()]
    assert "of which the last ones must be undone first" in cli("undo", first) and not train().is_sealed
    cli("undo", second)
    cli("undo", first)
    assert content() == before and removals() == []


def test_undo_of_gc_after_the_artifact_was_planned_again(project):
    before = content()
    cli("gc", "--yes")
    plan()
    cli("undo")
    assert content() == before


# --- pins -------------------------------------------------------------------------------------------------------------


def test_pinned_artifacts_and_what_they_were_made_from_are_kept(project):
    evaluation = next(a for a in of_stage("evaluate") if train().id in a.input_ids.values())
    assert "paper" in cli("pin", evaluation.key, "--reason", "table 2 of the paper")
    cli("gc", "--yes")
    assert evaluation.is_sealed and train().is_sealed
    for name in (evaluation.key, train().key):  # The second would take it along.
        with pytest.raises(UserError, match=r"is pinned \(table 2 of the paper\)"):
            cli("discard", name, "--yes")
    cli("unpin", evaluation.key)
    cli("gc", "--yes")
    assert not evaluation.folder.exists()


def test_an_experiment_can_be_pinned_by_name(project):
    write_config()
    cli("pin", "tiny_grpo", "--reason", "baseline")
    write_config(lambda config: config["experiments"].pop("tiny_grpo"))
    cli("gc", "--yes")
    assert train().is_sealed


def test_mistakes_with_pins_are_one_line(project):
    with pytest.raises(UserError, match="give a reason"):
        cli("pin", train().key)
    with pytest.raises(UserError, match="is not pinned"):
        cli("unpin", train().key)
    Path("results/pins.json").write_text("[")
    with pytest.raises(UserError, match="is damaged"):
        cli("gc", "--yes")
    assert train().is_sealed


@pytest.mark.parametrize("name", ["pins.json", "plans/configs.json"])
def test_no_flipped_bit_in_what_gc_asks_is_silent(project, name):
    cli("pin", train().key, "--reason", "baseline")
    record_used_config(ConfigFiles(["config/mine.yaml"], {"seeds": [1]}))
    path, silent = Path("results") / name, []
    assert not [*check_pins(), *check_used_configs()]
    intact = path.read_bytes()
    for place in range(len(intact)):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << place % 8]) + intact[place + 1 :])
        if not [*check_pins(), *check_used_configs()]:
            silent.append(place)
    assert not silent
    shown = CliRunner().invoke(app, ["verify"], env={"COLUMNS": "300"})
    assert shown.exit_code == 1 and f"results/{name} is damaged" in shown.output
    with pytest.raises(UserError, match="is damaged"):
        cli("gc", "--yes")
    assert train().is_sealed


def test_what_was_pinned_or_used_before_there_were_digests_is_readable(project):
    cli("pin", train().key, "--reason", "baseline")
    record_used_config(ConfigFiles(["config/mine.yaml"]))
    before = read_pins(), read_used_configs()
    for path, name in (("results/pins.json", "pins"), ("results/plans/configs.json", "configs")):
        Path(path).write_text(json.dumps(json.loads(Path(path).read_text())[name]))
    assert (read_pins(), read_used_configs()) == before and all(before)


def test_verify_names_what_is_pinned_and_gone(project):
    cli("pin", train().key, "--reason", "baseline")
    name, identity = train().name, train().id
    shutil.rmtree(train().folder)
    assert list(check_pins()) == [f"{name} is pinned, but is not here: restore it, or selfdistill unpin {identity}"]
    cli("unpin", identity)
    assert not list(check_pins())


# --- other layouts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def other_disk(project):
    """A folder on another file system."""
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == project.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize(("linked", "command"), [("artifact", "discard"), ("stage", "discard"), ("stage", "gc")])
def test_results_on_another_disk_stay_with_one_line(project, other_disk, linked, command):
    path = train().folder if linked == "artifact" else train().folder.parent
    shutil.copytree(path, other_disk / "moved")
    shutil.rmtree(path)
    path.symlink_to(other_disk / "moved")
    with pytest.raises(UserError, match="lies on another file system than results/artifacts"):
        cli("gc", "--yes") if command == "gc" else cli("discard", train().key, "--no-dependants", "--yes")
    assert train().is_sealed and "discarded" not in last_attempt(train().folder)
    assert command == "gc" or removals() == []


def test_a_folder_in_the_place_of_a_lock_is_one_line_of_discard(project, monkeypatch, capsys):
    lock = lock_path(train().folder)
    lock.unlink(missing_ok=True)
    lock.mkdir()
    monkeypatch.setattr(sys, "argv", ["selfdistill", "discard", train().key, "--yes"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{lock} is a folder, but must be a file" in capsys.readouterr().err
    assert train().is_sealed


def test_a_resume_state_that_is_a_link_goes_and_what_it_leads_to_stays(project):
    kept = project / "elsewhere"
    kept.mkdir()
    train("sdpo").state.symlink_to(kept)
    cli("gc", "--yes")
    assert not train("sdpo").state.is_symlink() and kept.is_dir()


def test_the_names_in_the_trash_are_not_those_of_artifacts(project):
    cli("gc", "--yes")
    assert not [a for a in all_artifacts() if TRASH in str(a.folder)]
    assert Artifact(ROOT / removals()[0].artifacts[0]).folder.exists() is False
