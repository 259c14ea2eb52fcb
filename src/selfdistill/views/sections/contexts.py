"""Teacher contexts (the paper's table 1) and guided fine-tuning (its table 2), its values beside ours."""

from __future__ import annotations

from selfdistill.views import sft
from selfdistill.views.evaluations import ALL_SEEDS, BASE
from selfdistill.views.figures import Dot, dots
from selfdistill.views.measures import DENSITY, EPISTEMIC, LENGTH, SCORE, Measurement
from selfdistill.views.published import MODEL, RICHNESS, SFT
from selfdistill.views.sections.blocks import INTERVAL, Canvas, Cell, Figure, Section, Table, key_cell, keys, num, text
from selfdistill.views.study import ModelStudy, Study
from selfdistill.views.style import BASE as BASE_LOOK
from selfdistill.views.style import CONTEXTS, GUIDED, PAPER, UNGUIDED, Look
from selfdistill.views.wording import PERCENT, TIMES, interval, listed, number, percent, signed, whole_percent


def richness_section(study: ModelStudy, canvas: Canvas) -> Section | None:
    """What the base model writes under each teacher context; None without a richness table."""
    contexts = study.contexts()
    if not contexts:
        return None
    sources = [row[name] for row in study.richness.values() for name in ("rollouts_artifact", "epistemics_artifact")]
    sizes = sorted({m.n() for m in contexts.values()})
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    caption = (
        f"The base model under each teacher context: n = {n} problems that it sometimes solves, k = "
        f"{next(iter(contexts.values())).k}. {INTERVAL}. Hollow: the paper, {MODEL} on mathematics. Length and density "
        "are shown as multiples of the unguided row, since the two worlds differ in scale."
    )
    figure = Figure(_panels(contexts, canvas), caption, keys(sources), [BASE_LOOK, PAPER])
    notes = (
        "The row none holds problems chosen for a low solve rate, so its score is low by selection.",
        "The paper's density is its count divided by its length; it prints neither intervals nor densities.",
    )
    blocks = [figure, _richness_table(study, contexts)]
    return Section("richness", "What the teacher sees, and how it then writes", _lead(contexts), blocks, notes)


def _panels(contexts: dict[str, Measurement], canvas: Canvas) -> list:
    panels = [canvas.place("Score", dots, [_score_row(name, m) for name, m in contexts.items()], PERCENT)]
    if "none" in contexts:
        for metric, title in ((LENGTH, "Length against none"), (DENSITY, "Density against none")):
            unguided = contexts["none"].mean(metric)
            rows = [_ratio_row(name, m, metric, unguided) for name, m in contexts.items()]
            panels.append(canvas.place(title, dots, rows, TIMES, 1.0))
    return panels


def _score_row(name: str, measurement: Measurement) -> list[Dot]:
    row = [Dot(BASE_LOOK, CONTEXTS[name], *measurement.estimate(SCORE))]
    return row + ([Dot(PAPER, "", RICHNESS[name].score, is_hollow=True)] if name in RICHNESS else [])


def _ratio_row(name: str, measurement: Measurement, metric: str, unguided: float) -> list[Dot]:
    """A context's mean, and its interval, over the mean of the unguided row; likewise for the paper."""
    ratio = [part / unguided if unguided else 0.0 for part in measurement.estimate(metric)]
    row = [Dot(BASE_LOOK, CONTEXTS[name], *ratio)]
    if name in RICHNESS:
        field = "length" if metric == LENGTH else "density"
        value = getattr(RICHNESS[name], field) / getattr(RICHNESS["none"], field)
        row.append(Dot(PAPER, "", value, is_hollow=True))
    return row


def _lead(contexts: dict[str, Measurement]) -> str:
    """Length and density under every context, as multiples of the unguided ones."""
    if "none" not in contexts:
        return "How the base model writes under each teacher context."
    unguided = contexts["none"]
    parts = []
    for name, measurement in contexts.items():
        if name != "none" and unguided.mean(LENGTH) and unguided.mean(DENSITY):
            length = measurement.mean(LENGTH) / unguided.mean(LENGTH)
            density = measurement.mean(DENSITY) / unguided.mean(DENSITY)
            parts.append(f"{length:.2f} and {density:.2f} with {CONTEXTS[name]}")
    return f"Length and density of uncertainty words, as multiples of those without any context: {listed(parts)}."


def _richness_table(study: ModelStudy, contexts: dict[str, Measurement]) -> Table:
    header = ("context", "n", "score", "paper", "tokens", "paper", "uncertainty words", "paper",
              "per 1,000 tokens", "paper", "artifacts")  # fmt: skip
    rows = []
    for name, m in contexts.items():
        paper = RICHNESS.get(name)
        theirs = ("–",) * 4 if paper is None else (whole_percent(paper.score), f"{paper.length:,g}",
                                                    f"{paper.count:g}", number(paper.density))  # fmt: skip
        ours = (interval(SCORE, m.estimate(SCORE)), *(_bare(m, metric) for metric in (LENGTH, EPISTEMIC, DENSITY)))
        cells = [cell for pair in zip(ours, theirs, strict=True) for cell in map(num, pair)]
        row = study.richness[name]
        artifacts = key_cell([row["rollouts_artifact"], row["epistemics_artifact"]])
        rows.append([text(CONTEXTS[name]), num(str(m.n())), *cells, artifacts])
    return Table(header, rows, f"Ours with 95 % intervals; paper: {MODEL}, 100 problems, 8 samples.")


def _bare(measurement: Measurement, metric: str) -> str:
    value, low, high = measurement.estimate(metric)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def sft_section(study: ModelStudy, whole: Study) -> Section | None:
    """Base, unguided and guided fine-tuning by benchmark, with the paper's table below; None without SFT runs."""
    if not study.sft:
        return None
    rows = [row for row in sft.rows(study.sft) if row["seed"] in (ALL_SEEDS, BASE)]
    header = ("fine-tuned on", "benchmark", "n", "k", "accuracy", "difference to base", "tokens",
              "uncertainty words per 1,000 tokens", "artifacts")  # fmt: skip
    ours = Table(header, [_sft_row(row, whole) for row in rows], "Mean over training seeds, 95 % intervals.")
    benchmarks = list(SFT[BASE])
    paper = Table(
        ("the paper's table 2", *benchmarks),
        [[text(_ARMS[arm]), *(num(percent(SFT[arm][name])) for name in benchmarks)] for arm in SFT],
        f"{MODEL}, mean of 16 samples; the paper prints no intervals.",
    )
    return Section("sft", "Fine-tuning on completions sampled with and without a solution", _sft_lead(study),
                   [ours, paper])  # fmt: skip


_ARMS = {BASE: "nothing (base)", "unguided": "unguided completions", "guided": "guided completions"}


def _sft_row(row: dict, whole: Study) -> list[Cell]:
    look: Look = BASE_LOOK if row["arm"] == BASE else whole.looks.get(row["experiment"], BASE_LOOK)
    score = interval(SCORE, (row["avg_at_k"], row["avg_at_k_low"], row["avg_at_k_high"]))
    difference = "–"
    if row["arm"] != BASE:
        difference = signed(SCORE, [row[name] for name in ("difference_to_base", "difference_low", "difference_high")])
    numbers = (str(row["n"]), str(row["k"]), score, difference, number(row["mean_length"]),
               number(row["epistemic_density_per_1k_tokens"]))  # fmt: skip
    names = row["evaluate_artifact"].split(";")
    return [Cell(_ARMS[row["arm"]], look=look), text(row["benchmark"]), *map(num, numbers), key_cell(names)]


def _sft_lead(study: ModelStudy) -> str:
    """`On toy_ood guided SFT is 34.3 points below unguided SFT [..]`, for each benchmark."""
    parts = []
    for name in dict.fromkeys(e.benchmark for e in study.sft):
        arms = {(e.about["method"], e.about["context"]): e.last() for e in study.sft if e.benchmark == name}
        if {GUIDED, UNGUIDED} <= set(arms):
            parts.append(f"on {name} {signed(SCORE, arms[GUIDED].difference(arms[UNGUIDED], SCORE))}")
    if not parts:
        return "Only one of the two arms was trained, so they are not compared."
    return f"Guided minus unguided fine-tuning: {listed(parts)}."
