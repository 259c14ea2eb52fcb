"""What a stage works with: its artifact, runtime settings, a log, and whether a stop was requested."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from selfdistill.artifacts.store import Artifact
from selfdistill.schema.runtime import StageRuntime


class Tee:
    """Log files and terminal: `log` writes to the files alone, `print` also to the terminal with the stage's name.

    Snakemake deletes its log when a job starts again; `history` keeps the lines of all attempts.
    """

    def __init__(self, log: Path, label: str, history: Path | None = None, stream: TextIO | None = None) -> None:
        self._paths = [log] if history is None else [log, history]
        self._label = label
        self._stream = stream or sys.stderr
        self._started = time.monotonic()

    def __enter__(self) -> Tee:
        self._files: list[TextIO] = []
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.append(path.open("a", encoding="utf-8"))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def log(self, text: str) -> None:
        """Write a line to the log files, with seconds since the start."""
        for file in self._files:
            file.write(f"{time.monotonic() - self._started:9.1f}s {text}\n")
            file.flush()

    def print(self, text: str) -> None:
        """Write a line to the log files and the terminal."""
        self.log(text)
        print(f"[{self._label}] {text}", file=self._stream, flush=True)

    @property
    def has_terminal(self) -> bool:
        return self._stream.isatty()

    @property
    def label(self) -> str:
        return self._label


def in_words(values: Mapping[str, Any]) -> str:
    """Counts and means in one line of a log: `problems 64, mean tokens 16.2, outcomes (correct 60, wrong 4)`."""
    told = [
        f"{name.replace('_', ' ')} ({in_words(value)})"
        if isinstance(value, Mapping)
        else f"{name.replace('_', ' ')} {f'{round(value, 3):g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    ]
    return ", ".join(told) or "none"


@dataclass(frozen=True)
class Shard:
    """One of several cluster jobs that divide the prompts of an artifact; written `2-of-8`, counted from 1."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The inverse of `str`. ValueError for anything else."""
        number, count = (int(part) for part in text.split("-of-"))
        if not 1 <= number <= count:
            raise ValueError(text)
        return cls(number - 1, count)

    def __str__(self) -> str:
        return f"{self.index + 1}-of-{self.count}"

    @property
    def is_partial(self) -> bool:
        """Whether there are other shards."""
        return self.count > 1


@dataclass
class Job:
    """One run of one stage. `lock`: descriptor of the artifact's lock, for children that must hold it as well."""

    artifact: Artifact
    runtime: StageRuntime
    tee: Tee
    is_resumable: bool = False
    is_stopped: bool = False
    stop_file: Path | None = None
    shard: Shard = Shard()
    lock: int | None = None
    #: What the stage wants to be read in the provenance of this attempt.
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def stop_requested(self) -> bool:
        """Whether this job should save its state and exit."""
        return self.is_stopped or (self.stop_file is not None and self.stop_file.exists())

    def progress(self, total: int, what: str) -> Progress:
        """A progress bar on a terminal, a line for every 10 % in the log."""
        return Progress(self.tee, total, what)

    def steps(self, total: int, what: str) -> Callable[[dict[str, Any]], None]:
        """A function that takes each training step's values: a progress bar on a terminal, a line a step in the log."""
        bar = tqdm(total=total, desc=f"{self.tee.label}: {what}", leave=False, disable=not self.tee.has_terminal)

        def report(values: dict[str, Any]) -> None:
            bar.update(values["step"] - bar.n)
            shown = " ".join(f"{name}={_short(value)}" for name, value in values.items() if name != "step")
            self.tee.log(f"step {values['step']}/{total} {shown}")

        return report


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Progress:
    """Progress of a known amount of work. Call it with the numbers of newly finished items and tokens."""

    def __init__(self, tee: Tee, total: int, what: str) -> None:
        self._tee, self._total, self._what = tee, total, what
        self._done, self._tokens = 0, 0
        self._logged = 0
        self._started = time.monotonic()
        self._bar = tqdm(total=total, desc=f"{tee.label}: {what}", leave=False, disable=not tee.has_terminal)

    def __call__(self, finished: int, tokens: int = 0) -> None:
        self._done += finished
        self._tokens += tokens
        if self._tokens:
            self._bar.set_postfix_str(self._speed(), refresh=False)
        self._bar.update(finished)
        tenth = 10 * self._done // max(self._total, 1)
        if tenth > self._logged:
            self._logged = tenth
            speed = f" ({self._speed()})" if self._tokens else ""
            self._tee.log(f"{self._what}: {self._done} of {self._total}{speed}")
        if self._done >= self._total:
            self._bar.close()

    def _speed(self) -> str:
        return f"{self._tokens / max(time.monotonic() - self._started, 1e-9):,.0f} tokens/s"
