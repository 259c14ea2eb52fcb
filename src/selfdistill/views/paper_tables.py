"""The paper's two tables beside ours: teacher contexts (table 1) and guided fine-tuning (table 2).

results/richness/{model}.csv has a row per teacher context, all on the same problems, which the base model sometimes
solves. results/sft/{model}.csv has a row per arm (base, unguided, guided), benchmark and seed at the last evaluated
step. Their columns are described in docs/report.md.

The paper's numbers (arXiv 2603.24472) are of DeepSeek-R1-Distill-Qwen-7B. Table 1: 100 problems of DAPO-Math-17k that
it solves in one to four of eight samples, eight samples each. Table 2: fine-tuning on 800 correct completions, mean
of 16 samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from selfdistill.views.csv_table import DIFFERENCES, MEASURES, SOURCES, as_csv, evaluation_row, measures
from selfdistill.views.figures import Dot, dots
from selfdistill.views.measures import DENSITY, EPISTEMIC, LENGTH, SCORE, Measurement
from selfdistill.views.page import INTERVAL, Cell, Figure, Panel, Section, Table, key_cell, keys, num, text
from selfdistill.views.study import (
    ALL_SEEDS,
    BASE,
    Evaluation,
    ModelStudy,
    Row,
    context_measurement,
    evaluations,
)
from selfdistill.views.style import (
    BASE_LOOK,
    CONTEXTS,
    GUIDED,
    PAPER,
    PERCENT,
    TIMES,
    UNGUIDED,
    interval,
    listed,
    number,
    percent,
    signed,
    whole_percent,
)

#: The paper's model, and how the slug of its artifact is recognised.
PAPER_MODEL = "DeepSeek-R1-Distill-Qwen-7B"


class PaperContext(NamedTuple):
    """One row of table 1: a fraction, tokens, words per completion."""

    score: float
    length: float
    count: float

    @property
    def density(self) -> float:
        return 1000.0 * self.count / self.length


#: Table 1 by context. Its density is not printed there: it is count / length.
TABLE_1 = {
    "none": PaperContext(0.30, 13054, 182.5),
    "solution": PaperContext(0.98, 1873, 8.8),
    "solution_no_think": PaperContext(0.78, 12036, 159.8),
    "regenerated": PaperContext(0.95, 2808, 24.1),
}

#: Table 2 by arm and benchmark.
TABLE_2 = {
    "base": {"aime24": 0.5479, "aime25": 0.3792, "amc23": 0.8906, "math500": 0.9219},
    "unguided": {"aime24": 0.5104, "aime25": 0.4000, "amc23": 0.8766, "math500": 0.9093},
    "guided": {"aime24": 0.2021, "aime25": 0.1271, "amc23": 0.5703, "math500": 0.6552},
}


def is_papers_model(artifact: str) -> bool:
    """Whether an artifact (`stage/slug-key`) is the model of the two tables."""
    return artifact.startswith(f"model/{PAPER_MODEL.lower()}-")


_WITH_INTERVAL = {"mean_length": LENGTH, "epistemic_count": EPISTEMIC, "epistemic_density_per_1k_tokens": DENSITY}
_PAPER = ("paper_avg_at_k", "paper_mean_length", "paper_epistemic_count", "paper_epistemic_density_per_1k_tokens")
_MEASURES = [name for c in MEASURES for name in ((c, f"{c}_low", f"{c}_high") if c in _WITH_INTERVAL else (c,))]
_COMPLETIONS = ("rollouts_artifact", "epistemics_artifact")
RICHNESS_COLUMNS = ("model", "context", *_MEASURES, *_PAPER, *_COMPLETIONS)

#: Arm -> what was fine-tuned on, in the order of the table.
_ARMS = {BASE: "nothing (base)", "unguided": "unguided completions", "guided": "guided completions"}
SFT_COLUMNS = (
    "model", "arm", "experiment", "seed", "step", "benchmark", "domain", *MEASURES, *DIFFERENCES, "paper_avg_at_k",
    *SOURCES,
)  # fmt: skip


# --- teacher contexts -------------------------------------------------------------------------------------------------


def build_richness(plan: dict[str, Any]) -> str:
    """results/richness/{model}.csv."""
    return as_csv([_context_row(row) for row in plan["rows"]], RICHNESS_COLUMNS)


def _context_row(row: Row) -> dict[str, Any]:
    measurement = context_measurement(row)
    cells = {name: row[name] for name in ("model", "context", *_COMPLETIONS)} | measures(measurement)
    for name, metric in _WITH_INTERVAL.items():
        _, cells[f"{name}_low"], cells[f"{name}_high"] = measurement.estimate(metric)
    paper = TABLE_1.get(row["context"])
    return cells | dict(zip(_PAPER, (*paper, paper.density), strict=True)) if paper else cells


def richness_section(study: ModelStudy) -> Section | None:
    """What the base model writes under each teacher context; None without a richness table."""
    contexts = study.contexts()
    if not contexts:
        return None
    sizes = sorted({m.n() for m in contexts.values()})
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    caption = (
        f"The base model under each teacher context: n = {n} problems that it sometimes solves, k = "
        f"{next(iter(contexts.values())).k}. {INTERVAL}. Hollow: the paper, {PAPER_MODEL} on mathematics. Length and "
        "density are divided by those of the row none, so that two studies of different scale can be compared."
    )
    sources = keys(row[name] for row in study.richness.values() for name in _COMPLETIONS)
    figure = Figure(_richness_panels(contexts), caption, sources, [BASE_LOOK, PAPER])
    notes = (
        "The row none holds problems chosen for a low solve rate, so its score is low by selection.",
        "The paper's density is its count divided by its length; it prints neither intervals nor densities.",
    )
    blocks = [figure, _richness_table(study, contexts)]
    return Section("richness", "Teacher contexts, and how the model writes under each", _richness_lead(contexts),
                   blocks, notes)  # fmt: skip


def _richness_panels(contexts: dict[str, Measurement]) -> list[Panel]:
    rows = [
        [Dot(BASE_LOOK, CONTEXTS[name], *m.estimate(SCORE))]
        + ([Dot(PAPER, "", TABLE_1[name].score, is_hollow=True)] if name in TABLE_1 else [])
        for name, m in contexts.items()
    ]
    panels = [Panel("Score", dots(rows, PERCENT))]
    if "none" in contexts:
        for metric, title in ((LENGTH, "Length against none"), (DENSITY, "Density against none")):
            unguided = contexts["none"].mean(metric)
            rows = [_ratio_row(name, m, metric, unguided) for name, m in contexts.items()]
            panels.append(Panel(title, dots(rows, TIMES, 1.0)))
    return panels


def _ratio_row(name: str, measurement: Measurement, metric: str, unguided: float) -> list[Dot]:
    """A context's mean, and its interval, over the mean of the unguided row; likewise for the paper."""
    ratio = [part / unguided if unguided else 0.0 for part in measurement.estimate(metric)]
    row = [Dot(BASE_LOOK, CONTEXTS[name], *ratio)]
    if name in TABLE_1:
        field = "length" if metric == LENGTH else "density"
        value = getattr(TABLE_1[name], field) / getattr(TABLE_1["none"], field)
        row.append(Dot(PAPER, "", value, is_hollow=True))
    return row


def _richness_lead(contexts: dict[str, Measurement]) -> str:
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
    return f"Length and density of epistemic words, as multiples of those without any context: {listed(parts)}."


def _richness_table(study: ModelStudy, contexts: dict[str, Measurement]) -> Table:
    header = ("context", "n", "score", "paper", "tokens", "paper", "epistemic words", "paper",
              "per 1,000 tokens", "paper", "artifacts")  # fmt: skip
    rows = []
    for name, m in contexts.items():
        paper = TABLE_1.get(name)
        theirs = ("–",) * 4 if paper is None else (whole_percent(paper.score), f"{paper.length:,g}",
                                                    f"{paper.count:g}", number(paper.density))  # fmt: skip
        ours = (interval(SCORE, m.estimate(SCORE)), *(_bare(m, metric) for metric in (LENGTH, EPISTEMIC, DENSITY)))
        cells = [num(cell) for pair in zip(ours, theirs, strict=True) for cell in pair]
        artifacts = key_cell(study.richness[name][role] for role in _COMPLETIONS)
        rows.append([text(CONTEXTS[name]), num(m.n()), *cells, artifacts])
    return Table(header, rows, f"Ours with 95 % intervals; paper: {PAPER_MODEL}, 100 problems, 8 samples.")


def _bare(measurement: Measurement, metric: str) -> str:
    value, low, high = measurement.estimate(metric)
    return f"{number(value)} [{number(low)}, {number(high)}]"


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def build_sft(plan: dict[str, Any]) -> str:
    """results/sft/{model}.csv."""
    return as_csv(_sft_rows(evaluations(plan["rows"])), SFT_COLUMNS)


def _sft_rows(found: list[Evaluation]) -> list[dict[str, Any]]:
    """The table's rows, by benchmark, then arm; the base, which the arms share, once per benchmark."""
    rows = []
    for benchmark in dict.fromkeys(e.benchmark for e in found):
        arms = sorted((e for e in found if e.benchmark == benchmark), key=lambda e: list(_ARMS).index(e.arm))
        first = next(e for e in found if e.benchmark == benchmark)
        rows.append(_sft_row(first, BASE, 0))
        rows += [_sft_row(e, seed, step) for e in arms for seed, step in e.last_cells()]
    return rows


def _sft_row(evaluation: Evaluation, seed: int | str, step: int) -> dict[str, Any]:
    arm = evaluation.arm if step else BASE
    paper = TABLE_2[arm].get(evaluation.benchmark) if is_papers_model(evaluation.base_row["train_artifact"]) else None
    row = evaluation_row(evaluation, seed, step)
    row |= {"model": evaluation.base_row["model"], "arm": arm, "paper_avg_at_k": paper}
    return row if step else row | {"experiment": BASE}


def sft_section(study: ModelStudy) -> Section | None:
    """Base, unguided and guided fine-tuning by benchmark, with the paper's table below; None without SFT runs."""
    if not study.sft:
        return None
    rows = [row for row in _sft_rows(study.sft) if row["seed"] in (ALL_SEEDS, BASE)]
    header = ("fine-tuned on", "benchmark", "n", "k", "accuracy", "difference to base", "tokens",
              "epistemic words per 1,000 tokens", "artifacts")  # fmt: skip
    ours = Table(header, [_sft_cells(row, study) for row in rows], "Mean over training seeds, 95 % intervals.")
    benchmarks = list(TABLE_2[BASE])
    paper = Table(
        ("the paper's table 2", *benchmarks),
        [[text(_ARMS[arm]), *(num(percent(TABLE_2[arm][name])) for name in benchmarks)] for arm in TABLE_2],
        f"{PAPER_MODEL}, mean of 16 samples; the paper prints no intervals.",
    )
    return Section("sft", "Fine-tuning on completions sampled with and without a solution", _sft_lead(study),
                   [ours, paper])  # fmt: skip


def _sft_cells(row: dict[str, Any], study: ModelStudy) -> list[Cell]:
    look = BASE_LOOK if row["arm"] == BASE else study.looks[row["experiment"]]
    score = interval(SCORE, (row["avg_at_k"], row["avg_at_k_low"], row["avg_at_k_high"]))
    difference = "–" if row["arm"] == BASE else signed(SCORE, [row[name] for name in DIFFERENCES])
    numbers = (row["n"], row["k"], score, difference, number(row["mean_length"]),
               number(row["epistemic_density_per_1k_tokens"]))  # fmt: skip
    artifacts = key_cell(row["evaluate_artifact"].split(";"))
    return [Cell(_ARMS[row["arm"]], look=look), text(row["benchmark"]), *map(num, numbers), artifacts]


def _sft_lead(study: ModelStudy) -> str:
    """`Guided minus unguided fine-tuning: on toy_ood −34.3 points [..]`, for each benchmark."""
    parts = []
    for name in dict.fromkeys(e.benchmark for e in study.sft):
        arms = {e.kind: e.last() for e in study.sft if e.benchmark == name}
        if {GUIDED, UNGUIDED} <= set(arms):
            parts.append(f"on {name} {signed(SCORE, arms[GUIDED].difference(arms[UNGUIDED], SCORE))}")
    if not parts:
        return "Only one of the two arms was trained, so they are not compared."
    return f"Guided minus unguided fine-tuning: {listed(parts)}."
