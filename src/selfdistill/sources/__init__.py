"""Problems from where they come from: a file, the toy world, reasoning-gym; all as the same rows.

A row is {question, answer, family, solution}: texts, `family` "" and `solution` None where the source has none. What
is not usable is dropped and counted by reason; nothing is deduplicated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from selfdistill.schema.common import AssetPin
from selfdistill.schema.sources import FileSource, Source, ToySource

Problem = dict[str, str | None]
#: From the pin of a file to its verified path: `Assets.file`.
Locate = Callable[[AssetPin], Path]


def load_problems(source: Source, locate: Locate | None = None) -> tuple[list[Problem], Counter[str]]:
    """All usable problems of a source in its order, and the number of dropped rows by reason.

    `locate` finds the file of a pin; by default in the project of the working directory. Raises UserError for
    a file, column, task or option that is not there, and when not one row is usable.
    """
    if isinstance(source, FileSource):
        from selfdistill.assets import Assets
        from selfdistill.sources.file import load_file

        return load_file(source, (locate or Assets.here().file)(source.pin))
    if isinstance(source, ToySource):
        from selfdistill.toy.problems import generate

        return generate(source), Counter()
    from selfdistill.sources.gym import load_gym

    return load_gym(source)
