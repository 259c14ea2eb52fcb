"""Which uncertainty words each method gains or loses, and whether other words move as much."""

from __future__ import annotations

from selfdistill.statistics import Difference
from selfdistill.views.epistemic import control, counts_column
from selfdistill.views.evaluations import ALL_SEEDS, Evaluation
from selfdistill.views.figures import Dot, dots, spread
from selfdistill.views.sections.blocks import INTERVAL, Canvas, Cell, Figure, Section, Table, keys, num, text
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy, Study
from selfdistill.views.wording import CHANGE, change, listed, number, times

_NARROW = 215


def words_section(study: ModelStudy, whole: Study, canvas: Canvas) -> Section:
    """Change per completion of each word from the base to the last checkpoint, and the paper's control (B.4)."""
    blocks: list[Figure | Table] = []
    leads = []
    for name in study.benchmarks(OUT_OF_DISTRIBUTION) or study.benchmarks():
        found = study.on(name)
        seen = [w for w in whole.lexicon if _occurs(found, w)]
        absent = [w for w in whole.lexicon if w not in seen]
        if seen:
            blocks.append(_figure(name, found, seen, absent, whole, canvas))
        blocks.append(_control_table(found, whole))
        leads.append(_lead(name, found, whole))
    notes = (
        "Counted by the paper's rule: occurrences anywhere in the text, case ignored.",
        "Control (the paper's appendix B.4): mean absolute change per completion over the lexicon's words and over all "
        "other words of the completions, both counted as whole words.",
    )
    return Section("words", "Word by word", " ".join(leads), blocks, notes)


def _occurs(found: dict[str, Evaluation], word: str) -> bool:
    column = counts_column("substring", word)
    measured = [next(iter(found.values())).base_measurement(), *(e.last() for e in found.values())]
    return any(m.mean(column) > 0 for m in measured)


def _figure(
    name: str, found: dict[str, Evaluation], seen: list[str], absent: list[str], whole: Study, canvas: Canvas
) -> Figure:
    changes = {
        experiment: [[Dot(whole.looks[experiment], word, *_change(evaluation, word))] for word in seen]
        for experiment, evaluation in found.items()
    }
    ends = [end for rows in changes.values() for (dot,) in rows for end in (dot.low, dot.high, 0.0)]
    panels = [
        canvas.place(whole.looks[experiment].label, dots, rows, CHANGE, 0.0, width=_NARROW, limits=spread(ends))
        for experiment, rows in changes.items()
    ]
    first = next(iter(found.values())).base_measurement()
    never = f" Never written: {listed(absent)}." if absent else ""
    caption = (
        f"{name}: change of each word's number per completion, last checkpoint minus base, n = {first.n()} problems, "
        f"k = {first.k}, seeds averaged. {INTERVAL}.{never}"
    )
    names = [n for e in found.values() for n in e.artifacts(e.steps[-1])["epistemics_artifact"].split(";")]
    return Figure(panels, caption, keys(names))


def _change(evaluation: Evaluation, word: str) -> Difference:
    return evaluation.last().difference(evaluation.base_measurement(), counts_column("substring", word))


def _control_table(found: dict[str, Evaluation], whole: Study) -> Table:
    rows = []
    for experiment, evaluation in found.items():
        moved = control(evaluation, evaluation.steps[-1], ALL_SEEDS, whole.lexicon)
        look = whole.looks[experiment]
        ratio = times(moved.lexicon / moved.others) if moved.others else "–"
        rows.append([Cell(look.label, look=look), num(number(moved.lexicon)), num(number(moved.others)), num(ratio),
                     num(str(moved.other_words)), text(evaluation.benchmark)])  # fmt: skip
    header = ("method", "uncertainty words move by", "other words move by", "ratio", "other words", "benchmark")
    return Table(header, rows, "Mean absolute change of a word's number per completion, last checkpoint against base.")


def _lead(name: str, found: dict[str, Evaluation], whole: Study) -> str:
    """The largest single change of each method."""
    parts = []
    for experiment, evaluation in found.items():
        base, last = evaluation.base_measurement(), evaluation.last()
        columns = {word: counts_column("substring", word) for word in whole.lexicon}
        changes = {word: last.mean(column) - base.mean(column) for word, column in columns.items()}
        word = max(changes, key=lambda w, moved=changes: abs(moved[w]))
        parts.append(f"{whole.looks[experiment].label} “{word}” ({change(changes[word])})")
    return f"On {name} the word that moves most per completion is, under {listed(parts)}."
