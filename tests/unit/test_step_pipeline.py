"""Parts of a step that are shared by the ranks, or done beside others: teacher prompts, and writing of rollouts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import pytest

from power_cut import Disk
from selfdistill.artifacts.tables import ROLLOUTS, write_rows
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import sampling
from selfdistill.training.distributed import World
from selfdistill.training.methods import encoding, make_method, teacher_prompts
from selfdistill.training.methods.encoding import encode_prompts
from test_step_sampling import Verdict, step_of
from test_training_contexts import group
from training_session import GRPO, SDPO, TOKENIZER, Session, make_spec

BOTH = ((0.0, 1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0))


class Rank(World):
    """One of two ranks in threads of this process."""

    def __init__(self, rank: int, barrier: threading.Barrier, parts: dict) -> None:
        super().__init__("cpu")
        self.rank, self.size, self._barrier, self._parts = rank, 2, barrier, parts

    def gather(self, results):
        self._parts[self.rank] = dict(results)
        self._barrier.wait(60)
        found = {place: result for part in self._parts.values() for place, result in part.items()}
        return [found[place] for place in sorted(found)]


@pytest.fixture
def encoded(monkeypatch):
    """The texts that were encoded, each time one was."""
    texts, plain = [], teacher_prompts.encode_context

    def counted(tokenizer, messages, kind, text, *rest):
        texts.append(text)
        return plain(tokenizer, messages, kind, text, *rest)

    monkeypatch.setattr(teacher_prompts, "encode_context", counted)
    return texts


def plans_of():
    method = make_method(make_spec(SDPO), TOKENIZER, 256)
    return method.plan_step([group(place, *rewards) for place, rewards in enumerate(BOTH)])


def ids_of(plans):
    return [[{name: prompt.ids for name, prompt in plan.teachers.items()} for plan in row] for row in plans]


def test_two_ranks_encode_each_teacher_prompt_once_and_both_get_all(encoded):
    expected = ids_of(encode_prompts(plans_of(), World("cpu")))
    distinct = len(encoded)
    encoded.clear()
    barrier, parts, found = threading.Barrier(2), {}, {}

    def work(rank):
        found[rank] = ids_of(encode_prompts(plans_of(), Rank(rank, barrier, parts)))

    ranks = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert found == {0: expected, 1: expected}
    assert len(encoded) == distinct and {len(part) for part in parts.values()} == {distinct // 2, -(-distinct // 2)}


def test_a_stop_is_heard_between_blocks_of_texts(encoded, monkeypatch):
    """A step of the paper's size takes minutes of a core; the state of the step before is saved."""
    monkeypatch.setattr(encoding, "_BLOCK", 2)
    called = []

    def leave():
        called.append(len(encoded))
        if len(called) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        encode_prompts(plans_of(), World("cpu"), leave)
    assert called == [0, 2, 4] == [0, 2, len(encoded)]


def test_no_prompt_is_encoded_to_see_whether_a_group_has_a_signal(encoded):
    plans = plans_of()
    assert [any(plan.has_signal for plan in row) for row in plans] == [True, True, True, False]
    assert encoded == []


def recorder(folder):
    return lambda step, rows: write_rows(folder / f"rollouts/step-{step}.parquet", rows, ROLLOUTS)


def test_rollouts_are_written_beside_the_updates(tmp_path):
    """Writing waits for the updates to begin: it would wait for ever if they came after it."""
    session, begun, written = Session(tmp_path, make_spec(GRPO, steps=2)), threading.Event(), []
    session.on_report = lambda line: begun.set() if line.get("phase") == "updates" else None

    def record(step, rows):
        written.append((step, len(rows), begun.wait(60)))
        begun.clear()

    session.run(record_rollouts=record)
    assert written == [(1, 16, True), (2, 16, True)]
    assert all(line["seconds_writing"] >= 0 for line in session.metrics())


def test_a_step_whose_rollouts_cannot_be_written_fails(tmp_path):
    session = Session(tmp_path, make_spec(GRPO, checkpoint_every=1))

    def record(step, rows):
        if step == 2:
            raise OSError(28, "No space left on device", "step-2.parquet")

    with pytest.raises(OSError, match="No space left"):
        session.run(record_rollouts=record)
    assert [line["step"] for line in session.metrics()] == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    assert [path.name for path in (tmp_path / "state").glob("step-*")] == ["step-1"]


def test_rollouts_are_on_disk_before_anything_that_follows_from_them(tmp_path, monkeypatch):
    """The thread that writes them is slower than the updates."""
    session = Session(tmp_path, make_spec(SDPO, checkpoint_every=1))
    disk, updated, seen = Disk(monkeypatch), threading.Event(), []

    def report(line):
        if line.get("phase") == "writing":
            updated.set()

    def record(step, rows):
        assert updated.wait(60)
        updated.clear()
        recorder(tmp_path)(step, rows)

    def before_rename(target):
        if target.parent.name in ("state", "checkpoints"):
            steps = range(1, int(target.name.removeprefix("step-")) + 1)
            assert disk.lost(*(tmp_path / f"rollouts/step-{step}.parquet" for step in steps)) == []
            seen.append(target.name)

    session.on_report, disk.before_rename = report, before_rename
    session.run(record_rollouts=record)
    assert set(seen) == {"step-1", "step-2", "step-3", "step-4"}


@pytest.mark.parametrize("method", [GRPO, SDPO])
def test_a_run_killed_while_it_writes_rollouts_ends_in_the_same_bytes(tmp_path, method):
    def session(name):
        (tmp_path / name / "rollouts").mkdir(parents=True, exist_ok=True)
        return Session(tmp_path / name, make_spec(method), StageRuntime(state_every_steps=1))

    whole, killed = session("whole"), session("killed")
    whole.run(record_rollouts=recorder(whole.folder))

    def record(step, rows):
        if step == 3:
            (killed.folder / "rollouts/.step-3.parquet.partial").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        recorder(killed.folder)(step, rows)

    child = multiprocessing.get_context("fork").Process(target=lambda: killed.run(record_rollouts=record))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (killed.folder / "state/step-3").exists()
    killed.run(record_rollouts=recorder(killed.folder))
    assert killed.weights() == whole.weights()
    files = [f"rollouts/step-{step}.parquet" for step in range(1, 5)]
    assert [(killed.folder / f).read_bytes() for f in files] == [(whole.folder / f).read_bytes() for f in files]


def test_sampling_waits_neither_for_grading_nor_for_files(monkeypatch):
    """Both are done by the grader's thread, and every group is kept."""
    monkeypatch.setattr(sampling, "_KEEP_SECONDS", 0.0)
    made, _, kept = step_of(lambda texts, prompts, stops: [Verdict("correct", 1.0) for _ in texts], prompts=6)
    threads, plain = [], kept.add

    def add(step, groups):
        threads.append(threading.current_thread())
        plain(step, groups)

    kept.add = add
    made.run()
    assert sorted(kept.added) == list(range(6))
    assert threading.main_thread() not in threads
