"""Worker processes that compare answers and are killed at a time limit.

Workers are fresh interpreters that speak lines over pipes. Not `multiprocessing`: a fork of a process with threads
or a GPU is unsafe, and a spawn would import the caller's main module, torch included. One comparison per worker is
under way at a time, so the clock of the limit starts when its worker gets it.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfdistill.grading.grader import Outcome
    from selfdistill.grading.worker import Rules

#: A worker imports a computer-algebra system; on a busy shared file system that can take long.
STARTUP_SECONDS = 300.0
#: The module that a worker runs, and its arguments.
_MATHS = ("selfdistill.grading.worker",)
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class WorkerStartError(RuntimeError):
    """A worker ended before it was ready; its own message is on standard error."""


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    job: int | None = None
    is_ready: bool = False


@dataclass
class _Batch:
    """One call: the texts of each comparison, what is still to do, and the outcomes so far."""

    texts: Sequence[tuple[str, ...]]
    timeout_seconds: float
    rules: Rules | str
    waiting: deque[int]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    retried: set[int] = field(default_factory=set)

    def give_back(self, job: int) -> None:
        """A worker died over a job: once is chance (a signal, the memory killer), twice is the job's own doing."""
        if job in self.retried:
            self.outcomes[job] = "timeout"
        else:
            self.retried.add(job)
            self.waiting.append(job)


class WorkerPool:
    """Compares (answer, gold) pairs with math-verify; a context manager.

    Workers start when first needed and live until `close`. A worker that runs into the limit is killed and replaced.
    """

    def __init__(self, processes: int = 1, worker: tuple[str, ...] = _MATHS) -> None:
        if processes < 1:
            raise ValueError(f"processes must be at least 1, not {processes}")
        self._processes = processes
        self._worker = worker
        self._beside: dict[tuple[str, ...], WorkerPool] = {}
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> int:
        """How many comparisons may be under way at a time."""
        return self._processes

    def beside(self, worker: tuple[str, ...]) -> WorkerPool:
        """As many workers that run another module, made once; they end with this pool."""
        if worker not in self._beside:
            self._beside[worker] = WorkerPool(self._processes, worker)
        return self._beside[worker]

    def compare(
        self, texts: Sequence[tuple[str, ...]], timeout_seconds: float, rules: Rules | str = "math_verify"
    ) -> list[Outcome]:
        """Outcome of each (answer, gold), in order: correct, wrong, unparsed, timeout or unreadable_gold.

        Workers that run another module may take other texts and answer other lines (`beside`). `timeout_seconds`
        bounds one comparison; `rules` are those of the grader. A comparison that twice kills its worker counts as
        timeout too. Raises WorkerStartError where a worker cannot start.
        """
        batch = _Batch(texts, timeout_seconds, rules, deque(range(len(texts))))
        with self._lock:
            try:
                while len(batch.outcomes) < len(texts):
                    self._assign(batch)
                    self._collect(batch)
            except BaseException:
                # Interrupted: an answer still under way must not be read as that of a later call.
                self._kill([worker for worker in self._workers if worker.job is not None or not worker.is_ready])
                raise
        return [batch.outcomes[job] for job in range(len(texts))]

    def close(self) -> None:
        """End all workers; a later `compare` starts new ones. Does nothing in a forked child."""
        if os.getpid() == self._owner:
            self._kill(list(self._workers))
            for pool in self._beside.values():
                pool.close()

    def _assign(self, batch: _Batch) -> None:
        self._kill([worker for worker in self._workers if worker.job is None and worker.process.poll() is not None])
        while len(self._workers) < min(self._processes, len(batch.texts) - len(batch.outcomes)):
            self._start()
        for worker in [worker for worker in self._workers if worker.is_ready and worker.job is None]:
            if not batch.waiting:
                break
            worker.job = batch.waiting.popleft()
            worker.deadline = time.monotonic() + batch.timeout_seconds
            texts = batch.texts[worker.job]
            request = {"texts": texts, "timeout_seconds": batch.timeout_seconds, "rules": batch.rules}
            try:
                worker.process.stdin.write(json.dumps(request).encode() + b"\n")
                worker.process.stdin.flush()
            except BrokenPipeError:
                self._lose(worker, batch)

    def _collect(self, batch: _Batch) -> None:
        busy = [worker for worker in self._workers if worker.job is not None or not worker.is_ready]
        if not busy:
            return
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        for key, _ in self._selector.select(patience):
            worker: _Worker = key.data
            line = worker.process.stdout.readline().decode().strip()
            if not line:
                self._lose(worker, batch)
            elif not worker.is_ready:
                worker.is_ready = True
            elif worker.job is not None:
                batch.outcomes[worker.job] = line
                worker.job = None
        now = time.monotonic()
        for worker in [w for w in self._workers if w.deadline <= now and (w.job is not None or not w.is_ready)]:
            if worker.is_ready:
                batch.outcomes[worker.job] = "timeout"
                self._kill([worker])
            else:
                self._lose(worker, batch)

    def _lose(self, worker: _Worker, batch: _Batch) -> None:
        """A worker is gone by itself."""
        self._kill([worker])
        if not worker.is_ready:
            raise WorkerStartError(
                f"a grading worker ({' '.join(self._worker)}) could not start; its message is on standard error. "
                "Is everything installed that it imports?"
            )
        if worker.job is not None:
            batch.give_back(worker.job)

    def _start(self) -> None:
        path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-m", *self._worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        worker = _Worker(process, time.monotonic() + STARTUP_SECONDS)
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _kill(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            self._selector.unregister(worker.process.stdout)
            self._workers.remove(worker)
            worker.process.kill()
            worker.process.wait()
            worker.process.stdout.close()
            try:
                worker.process.stdin.close()
            except BrokenPipeError:
                continue  # Bytes that a dead worker never read: there is nothing left to lose.
