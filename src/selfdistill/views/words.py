"""Every epistemic word by itself: results/epistemic/{experiment}.csv, the paper's control, the report's section.

One row of the table per seed, evaluated step, benchmark, mode and word; the word `all` is the whole lexicon, and the
columns are described in docs/report.md.

The control (arXiv 2603.24472, appendix B.4) asks whether epistemic words move more than other words. For every word of
two sets of completions it takes the change of its mean number of occurrences per completion, and reports the mean
absolute change over the lexicon and over all other words that occur on either side. Words are runs of letters (an
apostrophe inside is allowed); the lexicon is counted as whole words here, so that both sides follow one rule. What of
a lexicon is no such run (a phrase, a hyphenated word, a script without spaces) is counted by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from selfdistill.epistemic import count_many, has_unspaced_script
from selfdistill.schema.errors import UserError
from selfdistill.views.csv_table import SOURCES, as_csv, sources
from selfdistill.views.figures import Dot, dots, spread
from selfdistill.views.measures import ALL, Measurement, density_of, open_artifact, read_table
from selfdistill.views.page import INTERVAL, Figure, Panel, Section, Table, keys, method, num, text
from selfdistill.views.study import ALL_SEEDS, Evaluation, ModelStudy, evaluations
from selfdistill.views.style import CHANGE, change, listed, number, times

MODES = ("substring", "word")
CHANGES = tuple(f"change_of_{what}{end}" for what in ("count", "density") for end in ("", "_low", "_high"))
CONTROL = ("mean_absolute_change", "mean_absolute_change_other_words", "other_words")
EPISTEMIC_COLUMNS = (
    "experiment", "seed", "step", "benchmark", "domain", "mode", "word", "n", "k", "count", "density_per_1k_tokens",
    *CHANGES, *CONTROL, *SOURCES,
)  # fmt: skip
_WORD = re.compile(r"\b[^\W\d_]+(?:['’][^\W\d_]+)*\b")
_NARROW = 215

Frequencies = dict[str, float]


def build_epistemic(plan: dict[str, Any]) -> str:
    """results/epistemic/{experiment}.csv."""
    return as_csv([row for e in evaluations(plan["rows"]) for row in _rows(e, plan["lexicon"])], EPISTEMIC_COLUMNS)


def _rows(evaluation: Evaluation, lexicon: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The table's rows of one experiment on one benchmark."""
    for seed, step in evaluation.cells():
        measurement = evaluation.measurement(step, seed)
        about = {
            "experiment": evaluation.experiment, "seed": seed, "step": step, "benchmark": evaluation.benchmark,
            "domain": evaluation.domain, "n": measurement.n(), "k": measurement.k,
            **sources(evaluation, seed, step),
        }  # fmt: skip
        for mode in MODES:
            for word in (ALL, *lexicon):
                counts = _counts(measurement, evaluation.base if step else None, counts_column(mode, word))
                row = about | {"mode": mode, "word": word} | counts
                if mode == "word" and word == ALL and step:
                    row |= zip(CONTROL, control(evaluation, lexicon, seed, step), strict=True)
                yield row


def counts_column(mode: str, word: str) -> str:
    """Name of a word's column in the counts of an epistemics artifact."""
    return f"{mode}_total" if word == ALL else f"{mode}:{word}"


def _counts(measurement: Measurement, base: Measurement | None, column: str) -> dict[str, Any]:
    if column not in measurement.frames[0]:
        raise UserError(f"the column `{column}` was not counted: plan the view again (snakemake -n TARGET).")
    metrics = (column, density_of(column))
    row = dict(zip(("count", "density_per_1k_tokens"), map(measurement.mean, metrics), strict=True))
    changes = [end for metric in metrics for end in measurement.difference(base, metric)] if base else [None] * 6
    return row | dict(zip(CHANGES, changes, strict=True))


# --- the control ------------------------------------------------------------------------------------------------------


class Shift(NamedTuple):
    """Mean absolute change per completion of a lexicon's words, of all other words, and how many of those there are."""

    lexicon: float
    others: float
    other_words: int


def control(evaluation: Evaluation, lexicon: Sequence[str], seed: int | str, step: int) -> Shift:
    """Shift of the lexicon and of all other words from the base to a checkpoint."""
    after = frequencies(evaluation.names("evaluate_artifact", seed), step, lexicon)
    return shift(after, frequencies(evaluation.names("evaluate_artifact", step=0), 0, lexicon), lexicon)


def frequencies(rollouts: Sequence[str], step: int, lexicon: Sequence[str]) -> Frequencies:
    """Mean occurrences per completion of every word, averaged over artifacts (training seeds)."""
    tables = [_of_artifact(open_artifact(name).folder.resolve(), step, tuple(lexicon)) for name in rollouts]
    words = {word for table in tables for word in table}
    return {word: sum(table.get(word, 0.0) for table in tables) / len(tables) for word in words}


@lru_cache(maxsize=256)
def _of_artifact(folder: Path, step: int, lexicon: tuple[str, ...]) -> Frequencies:
    table = read_table(folder / "payload" / "rollouts.parquet", ["step", "completion"])
    return word_frequencies(list(table.loc[table["step"] == step, "completion"]), lexicon)


def word_frequencies(texts: Sequence[str], lexicon: Sequence[str]) -> Frequencies:
    """Mean occurrences per text of every word of the texts, and of those of the lexicon that are no single word."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    for word in lexicon:
        if not _WORD.fullmatch(word.lower()) or has_unspaced_script(word):
            mode = "substring" if has_unspaced_script(word) else "word"
            counts[word.lower()] = sum(count_many(texts, [word], mode)[word])
    return {word: number / len(texts) for word, number in counts.items()}


def shift(after: Frequencies, before: Frequencies, lexicon: Sequence[str]) -> Shift:
    """How far the two groups of words moved; a group without a word has moved by 0."""
    words = sorted({word.lower() for word in lexicon})
    others = sorted((set(after) | set(before)) - set(words))

    def moved(words: Sequence[str]) -> float:
        return sum(abs(after.get(w, 0.0) - before.get(w, 0.0)) for w in words) / max(len(words), 1)

    return Shift(moved(words), moved(others), len(others))


# --- the report's section ---------------------------------------------------------------------------------------------


def words_section(study: ModelStudy) -> Section:
    """Change per completion of each word from the base to the last checkpoint, and the paper's control (B.4)."""
    blocks: list[Figure | Table] = []
    leads = []
    for name in study.main_benchmarks:
        found = study.on(name)
        seen = [word for word in study.lexicon if _occurs(found, word)]
        if seen:
            blocks.append(_figure(name, found, seen, study))
        blocks.append(_control_table(found, study))
        leads.append(_lead(name, found, study))
    notes = (
        "Counted by the paper's rule: occurrences anywhere in the text, case ignored.",
        "Control (the paper's appendix B.4): mean absolute change per completion over the lexicon's words and over all "
        "other words of the completions, both counted as whole words.",
    )
    return Section("words", "Word by word", " ".join(leads), blocks, notes)


def _occurs(found: dict[str, Evaluation], word: str) -> bool:
    column = counts_column("substring", word)
    measured = [next(iter(found.values())).base, *(e.last() for e in found.values())]
    return any(m.mean(column) > 0 for m in measured)


def _figure(name: str, found: dict[str, Evaluation], seen: list[str], study: ModelStudy) -> Figure:
    changes = {
        study.looks[experiment]: [(word, evaluation.change(counts_column("substring", word))) for word in seen]
        for experiment, evaluation in found.items()
    }
    shown = [change for words in changes.values() for _, change in words]
    limits = spread([0.0, *(c.value for c in shown)], [(c.low, c.high) for c in shown])
    panels = [
        Panel(look.label, dots([[Dot(look, word, *c)] for word, c in words], CHANGE, 0.0, _NARROW, limits))
        for look, words in changes.items()
    ]
    base = next(iter(found.values())).base
    absent = [word for word in study.lexicon if word not in seen]
    never = f" Never written: {listed(absent)}." if absent else ""
    caption = (
        f"{name}: change of each word's number per completion, last checkpoint minus base, n = {base.n()} problems, "
        f"k = {base.k}, seeds averaged. {INTERVAL}.{never}"
    )
    return Figure(panels, caption, keys(n for e in found.values() for n in e.names("epistemics_artifact")))


def _control_table(found: dict[str, Evaluation], study: ModelStudy) -> Table:
    rows = []
    for experiment, evaluation in found.items():
        moved = control(evaluation, study.lexicon, ALL_SEEDS, evaluation.steps[-1])
        ratio = times(moved.lexicon / moved.others) if moved.others else "–"
        numbers = (number(moved.lexicon), number(moved.others), ratio, moved.other_words)
        rows.append([method(study.looks[experiment]), *map(num, numbers), text(evaluation.benchmark)])
    header = ("method", "change of epistemic words", "change of other words", "ratio", "other words", "benchmark")
    return Table(header, rows, "Mean absolute change of a word's number per completion, last checkpoint against base.")


def _lead(name: str, found: dict[str, Evaluation], study: ModelStudy) -> str:
    """The largest single change of each method."""
    parts = []
    for experiment, evaluation in found.items():
        base, last = evaluation.base, evaluation.last()
        columns = {word: counts_column("substring", word) for word in study.lexicon}
        changes = {word: last.mean(column) - base.mean(column) for word, column in columns.items()}
        word = max(changes, key=lambda w, moved=changes: abs(moved[w]))
        parts.append(f"“{word}” under {study.looks[experiment].label} ({change(changes[word])})")
    return f"On {name}, the word whose number per completion changes most is {listed(parts)}."
