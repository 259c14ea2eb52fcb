"""Problems from where they come from (a file, `load_dataset`, the toy world, reasoning-gym, LiveCodeBench) as rows.

A row is {question, answer, family, solution}: texts, `family` "" and `solution` None where the source has none; and
`system` where a problem brings a system message of its own. What is not usable is dropped and counted by reason;
nothing is deduplicated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from selfdistill.schema.common import AssetPin
from selfdistill.schema.sources import FileSource, LiveCodeBenchSource, LoadedSource, Source, ToySource

Problem = dict[str, str | None]
#: From the pin of a file to its verified path: `Assets.file`.
Locate = Callable[[AssetPin], Path]


def stream_problems(source: Source, counts: Counter[str], locate: Locate | None = None) -> Iterator[Problem]:
    """All usable problems of a source in its order; dropped rows are counted by reason in `counts` on the way.

    `locate` finds the file of a pin; by default in the project of the working directory. Raises UserError for
    a file, column, task or option that is not there, and when not one row is usable.
    """
    if isinstance(source, LoadedSource):
        from selfdistill.assets import Assets
        from selfdistill.sources.loaded import read_loaded

        place = locate(source.pin) if locate else Assets.here().dataset_place(source.pin, source.files)
        yield from read_loaded(source, place, counts)
    elif isinstance(source, (FileSource, LiveCodeBenchSource)):
        from selfdistill.assets import Assets
        from selfdistill.sources.file import read_file
        from selfdistill.sources.livecodebench import read_livecodebench

        path = (locate or Assets.here().file)(source.pin)
        read = read_file if isinstance(source, FileSource) else read_livecodebench
        yield from read(source, path, counts)
    elif isinstance(source, ToySource):
        from selfdistill.toy.source import generate

        yield from generate(source)
    else:
        from selfdistill.sources.gym import load_gym

        problems, dropped = load_gym(source)
        counts.update(dropped)
        yield from problems


def load_problems(source: Source, locate: Locate | None = None) -> tuple[list[Problem], Counter[str]]:
    """The same as a list, with the number of dropped rows by reason."""
    counts: Counter[str] = Counter()
    problems = list(stream_problems(source, counts, locate))
    return problems, +counts
