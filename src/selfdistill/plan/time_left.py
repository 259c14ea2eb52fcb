"""How long a run will still take, from its own jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

#: Rules that no job has finished of are left out of the estimate as long as they are this share of the jobs at most.
_NEGLIGIBLE = 0.05


class TimeLeft:
    """Trainings take longer than tables, and come first: each rule's jobs are expected to take that rule's mean."""

    def __init__(self) -> None:
        self.jobs: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def expect(self, jobs: Mapping[str, int]) -> None:
        """The number of jobs of each rule in this run."""
        self.jobs = Counter(jobs)

    def finish(self, rule: str, seconds: float) -> None:
        """A job of the rule took `seconds`."""
        self._finished[rule] += 1
        self._seconds[rule] += seconds

    def seconds(self, elapsed: float) -> tuple[float, bool]:
        """Seconds that are left after `elapsed` seconds, and whether they are a lower bound: rules are unknown yet."""
        waiting = self.jobs - self._finished
        known = {rule: count for rule, count in waiting.items() if self._finished[rule]}
        work = sum(count * self._seconds[rule] / self._finished[rule] for rule, count in known.items())
        at_once = max(self._seconds.total() / elapsed, 1.0) if elapsed > 0 else 1.0
        unknown = waiting.total() - sum(known.values())
        return work / at_once, unknown > _NEGLIGIBLE * waiting.total()
