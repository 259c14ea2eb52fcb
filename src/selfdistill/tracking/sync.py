"""One writer: look, compare, write. Doing it twice changes nothing; doing it after a loss restores everything."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from tqdm import tqdm

from selfdistill.artifacts.store import ROOT
from selfdistill.files import replacing
from selfdistill.tracking.store import TrackingError, TrackingStore, sqlite_settings
from selfdistill.tracking.survey import Survey
from selfdistill.tracking.time_limit import TimeIsUp, time_limit

if TYPE_CHECKING:
    from selfdistill.tracking.index import Index
    from selfdistill.tracking.run_records import Record

#: How often files are looked for before a removed one is an error.
_LOOKS = 3
#: Time limit of a server for one run, and for what it holds.
_RUN_SECONDS = 600


@dataclass
class Report:
    """What one call did."""

    store: str
    runs: int = 0
    created: int = 0
    updated: int = 0
    replaced: int = 0
    removed: int = 0
    points: int = 0
    is_unchanged: bool = False
    exists: bool = True
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        if self.is_unchanged:
            return f"MLflow: {self.store} is up to date." if self.exists else "MLflow: there is nothing to show yet."
        counts = (("new", self.created), ("updated", self.updated), ("written anew", self.replaced),
                  ("removed", self.removed), ("metric points", self.points))  # fmt: skip
        changes = ", ".join(f"{count} {what}" for what, count in counts if count) or "nothing changed"
        return f"MLflow: {self.store} holds {self.runs} runs ({changes}; {self.seconds:.0f} s)."


def track(
    *,
    quiet: bool = False,
    root: Path = ROOT,
    store: str | None = None,
    everything: bool = False,
    say: Callable[[str], None] = print,
) -> Report:
    """Bring the MLflow store up to date with the artifacts under `root`.

    `store` is a tracking URI (default: see TrackingStore); `quiet` says nothing when nothing changed; `everything`
    compares run by run even if no file changed since the last call. TrackingError if the store cannot be written.
    """
    started = time.monotonic()
    target = TrackingStore.choose(root, store)
    target.folder.mkdir(parents=True, exist_ok=True)
    with only_writer(target, say):
        report = _look_and_write(target, root, say, everything=everything)
    report.seconds = time.monotonic() - started
    for problem in report.problems:
        say(f"MLflow: left out: {problem}")
    if not (quiet and report.is_unchanged):
        say(report.line)
    return report


def _look_and_write(target: TrackingStore, root: Path, say: Callable[[str], None], *, everything: bool) -> Report:
    """Looks again where a file was removed (discard, gc, a table written anew) between looking and reading."""
    for _ in range(_LOOKS):
        survey = Survey.of(root)
        report = Report(target.shown, problems=list(survey.problems))
        written = target.last_written()
        if not everything and target.exists() and written.items() >= target.identity(survey.fingerprint).items():
            report.is_unchanged = True
            return report
        if not survey.entries and not target.exists():
            report.is_unchanged, report.exists = True, False
            return report
        target.check_reachable()
        say(f"MLflow: comparing {len(survey.entries)} artifacts with {target.shown}.")
        try:
            with time_limit(0 if target.database is not None else _RUN_SECONDS) as renew:
                _write(target, survey, lambda index, records, report=report: _apply(index, records, report, renew))
        except FileNotFoundError as error:
            missing = error.filename
            continue
        except TimeIsUp:
            raise target.failure(TimeoutError(f"no complete answer within {_RUN_SECONDS} s")) from None
        return report
    raise TrackingError(f"{missing} was removed while it was read. Run the command again.")


def stream(folder: Path, uri: str | None = None) -> None:
    """Write one artifact that is being computed, and what it was made from if that is missing.

    It writes the run that `track` would write, so the next `track` continues it. Does nothing while another process
    writes the store. Raises TrackingError when the store cannot be written.
    """
    root = folder.parent.parent
    store = TrackingStore.choose(root, uri)
    store.folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(store.lock).acquire(timeout=0)
    except Timeout:
        return
    with lock:
        survey = Survey.of_artifact(folder)
        if survey.entries:
            store.check_reachable()
            _write(store, survey, _apply_last, only=survey.entries)


@contextmanager
def only_writer(store: TrackingStore, say: Callable[[str], None]) -> Iterator[None]:
    """Wait for another writer; when it is done there is usually nothing left to do."""
    lock = FileLock(store.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"MLflow: another process is writing {store.shown}; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(
    store: TrackingStore,
    survey: Survey,
    apply: Callable[[Index, dict[str, Record]], None],
    only: Collection[str] | None = None,
) -> None:
    """Open the store, new or migrated if need be, and apply the records; `only` limits what is read of it."""
    from selfdistill.tracking.builder import build_records
    from selfdistill.tracking.experiments import EXPERIMENTS
    from selfdistill.tracking.index import STORE_ERRORS, VERSION, Index

    records = build_records(survey)
    is_migrated = store.last_written().get("mlflow") == VERSION
    try:
        if not store.exists():
            # Another name until it is complete: a crash leaves no half-written database, and commits need not wait
            # for the disk.
            if store.is_default:
                shutil.rmtree(store.files, ignore_errors=True)
            with replacing(store.database) as partial, sqlite_settings(durable=False):
                store.prepare(f"sqlite:///{partial}")
                with Index(store, f"sqlite:///{partial}", only) as index:
                    apply(index, records)
        else:
            with sqlite_settings():
                if store.database is not None and not is_migrated:
                    store.prepare(store.uri)
                if store.is_default:
                    store.follow_move(EXPERIMENTS["training"], "training")
                with Index(store, store.uri, only) as index:
                    apply(index, records)
    except STORE_ERRORS as error:
        raise store.failure(error) from error
    store.keep_tags({name: tags for name, tags in store.kept_tags().items() if name not in index.created})
    # After a partial write the next writer compares every run.
    store.record({"mlflow": VERSION, **({} if only is not None else store.identity(survey.fingerprint))})


def _apply_last(index: Index, records: dict[str, Record]) -> None:
    """Bring the last record up to date; create the others if they are missing."""
    *upstream, last = records.values()
    for record in upstream:
        if record.id not in index.tracked:
            index.create(record)
    tracked, renew = index.tracked.get(last.id), lambda: None
    if tracked is not None and not index.is_whole(last):
        tracked = None
        _remove(index, [last.id], renew)
    if tracked is None:
        index.create(last)
    elif tracked.mark["digest"] != last.digest:
        index.extend(last)


def _apply(index: Index, records: dict[str, Record], report: Report, renew: Callable[[], None]) -> None:
    """Remove, write anew, create, extend; in the order of the records (upstream first). `renew` before each step."""
    anew, gone = _outdated(records, index)
    _remove(index, [*gone, *anew], renew)
    for record in tqdm(records.values(), desc="MLflow", unit="run", leave=False, disable=None):
        renew()
        tracked = index.tracked.get(record.id)
        if tracked is None:
            index.create(record)
            report.replaced += record.id in anew
            report.created += record.id not in anew
        elif tracked.mark["digest"] != record.digest:
            index.extend(record)
            report.updated += 1
    renew()
    index.show_scores(records.values())
    report.problems += index.problems
    report.removed, report.points, report.runs = len(gone), index.points, len(records)


def _remove(index: Index, names: Sequence[str], renew: Callable[[], None]) -> None:
    """Remove runs. What people wrote on them is on disk before: a writer may be killed before the runs are back."""
    index.kept |= {name: index.tags_of_people(name) for name in names}
    index.store.keep_tags(index.kept)
    for name in names:
        renew()
        index.remove(name)


def _outdated(records: dict[str, Record], index: Index) -> tuple[set[str], set[str]]:
    """Runs to write anew, and runs whose artifact is gone.

    With a run go the runs that used its models, and those whose models carry its numbers.
    """
    tracked = index.tracked
    gone = set(tracked) - set(records)
    anew = {name for name in set(tracked) & set(records) if not index.is_whole(records[name])}
    grown = True
    while grown:
        lost = anew | gone
        for name, run in tracked.items():
            if name in lost:
                anew |= run.measures & set(tracked) - gone
            elif (run.links | run.measures) & lost:
                anew.add(name)
        grown = anew | gone != lost
    return anew, gone
