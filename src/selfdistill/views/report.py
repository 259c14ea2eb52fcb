"""results/report.html: the study on one page that opens offline.

The text is chosen by the numbers. Figures are inline SVG, colours and dark mode are CSS, nothing is loaded from
elsewhere; links lead to the manifests of the artifacts, relative to results/.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import count
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from selfdistill.artifacts.store import Artifact
from selfdistill.plan.pairs import SECTION, side_name
from selfdistill.plan.views import DEFAULT_REPORT
from selfdistill.views.assumptions import assumptions_section
from selfdistill.views.breadth import breadth_section
from selfdistill.views.claims import adjusted, checks, checks_section
from selfdistill.views.comparison import (
    SIDE_LOOKS,
    Comparison,
    Side,
    compare_sides,
    comparison_figure,
    comparison_sections,
)
from selfdistill.views.completions import reading_section
from selfdistill.views.coverage import coverage_checks, coverage_section
from selfdistill.views.cures import cures_section
from selfdistill.views.diagnostics import diagnostics_section
from selfdistill.views.figures import for_page, legend_mark
from selfdistill.views.forced import forced_section
from selfdistill.views.lineage import SilentCount, ancestry, origin, silent_counts
from selfdistill.views.page import Cell, Figure, Panel, Section, Table, key_cell, num, text
from selfdistill.views.paper_tables import richness_section, sft_section
from selfdistill.views.scores import checkpoints_section, families_section, headline, main_figures, scores_section
from selfdistill.views.study import OUT_OF_DISTRIBUTION, Evaluation, ModelStudy, evaluations, read_study
from selfdistill.views.style import NO_THINK, SDPO, Look, number, palette, percent
from selfdistill.views.training_curves import curves_section
from selfdistill.views.tuning import tuning_section
from selfdistill.views.words import words_section

log = logging.getLogger("selfdistill.views.report")
TITLE = "Does self-distillation degrade reasoning? A reproduction of arXiv 2603.24472"
_TEMPLATES = files("selfdistill.views") / "templates"
#: The part of a comparison of two experiments that is open at once; the others are behind their titles.
_OPEN_PART = "scores"


@dataclass(frozen=True)
class ModelPage:
    """One base model: its finding, its main figures, its sections."""

    name: str
    finding: str
    main: list[Figure]
    sections: list[Section]
    explained: str = ""


def build_report(plan: dict[str, Any]) -> str:
    """results/report.html, or results/reports/{name}.html."""
    pages, shared = pages_of(plan)
    for page in pages:
        if page.finding:
            log.info("finding: %s", page.finding.replace("\u00a0", " "))
    looks = [look for study in read_study(plan) for look in (*study.looks.values(), *study.cure_looks.values())]
    looks += SIDE_LOOKS
    return render(pages, shared, looks, TITLE, "" if plan["name"] == DEFAULT_REPORT else "../")


def pages_of(plan: dict[str, Any]) -> tuple[list[ModelPage], list[Section]]:
    """What a report shows of each base model, and the sections for all of them."""
    studies, artifacts = read_study(plan), ancestry(plan["artifacts"])
    shared = _present(
        *pair_sections(plan),
        breadth_section(studies, plan["trained_on"]),
        silent_section(artifacts),
        assumptions_section(artifacts, plan["rows"]),
        provenance_section(artifacts),
    )
    return [_model_page(study) for study in studies], shared


def render(
    pages: Sequence[ModelPage], shared: Sequence[Section], looks: Iterable[Look], title: str, root: str = ""
) -> str:
    """The page as HTML; `root` leads from its folder to results/."""
    colours = palette(looks)
    template = _environment(colours).get_template("report.html")
    page = template.render(
        pages=pages, shared=shared, palette=colours, style=Markup(_read("report.css")), title=title, root=root
    )
    return page.rstrip("\n") + "\n"


def _model_page(study: ModelStudy) -> ModelPage:
    # A model may have these without being among the report's experiments.
    tables_only = (
        cures_section(study),
        richness_section(study),
        sft_section(study),
        coverage_section(study),
        forced_section(study),
        tuning_section(study),
        diagnostics_section(study),
    )
    if not study.main:
        return ModelPage(study.model, "", [], _present(*tables_only))
    sections = _present(
        checks_section(adjusted([*checks(study), *coverage_checks(study)])),
        reading_section(study),
        families_section(study),
        scores_section(study),
        checkpoints_section(study),
        curves_section(study),
        *tables_only,
        words_section(study),
    )
    return ModelPage(study.model, headline(study), main_figures(study), sections, explained(study))


def explained(study: ModelStudy) -> str:
    """What a reader must know before the first figure: the world, the benchmarks, the names of methods."""
    sentences = []
    if any(e.base_row["train_artifact"].startswith("pretrain/") for e in study.main):
        sentences.append(
            f"{study.model} is a small model of a synthetic world, pretrained here on generated text: it shows how the "
            "methods work and says nothing of the size of effects in large models."
        )
    for name in study.benchmarks():
        evaluation = next(iter(study.on(name).values()))
        place = "out of distribution (problems unlike those trained on)" if evaluation.domain == OUT_OF_DISTRIBUTION \
            else "in the distribution trained on"  # fmt: skip
        chance = evaluation.chance()
        guess = "" if chance is None else f", where a guess is right in {percent(chance)}"
        sentences.append(f"{name} is {place}{guess}.")
    kinds = {evaluation.kind for evaluation in study.main}
    if SDPO in kinds:
        sentences.append("c = s: the teacher of SDPO reads a full correct solution.")
    if NO_THINK in kinds:
        sentences.append("c = s\\think: it reads the solution without its thinking.")
    return " ".join(sentences)


def _present(*sections: Section | None) -> list[Section]:
    return [section for section in sections if section is not None]


def _environment(colours: dict[str, tuple[str, str]]) -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = count(1)

    def svg(panel: Panel) -> Markup:
        return Markup(for_page(panel.plot.svg, colours, next(numbers), panel.title))

    def mark(look: Look) -> Markup:
        return Markup(for_page(legend_mark(look).svg, colours, next(numbers), look.label))

    environment.filters |= {"svg": svg, "mark": mark}
    return environment


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


# --- sections that all models share -----------------------------------------------------------------------------------


def silent_section(artifacts: Sequence[Artifact]) -> Section:
    """Everything that was dropped, truncated or not understood; zeros are named below the table."""
    counts = silent_counts(artifacts)
    rows = [
        [text(c.stage), text(c.name), num(c.artifacts), num(_shown(c, c.overall)), num(_shown(c, c.largest)),
         Cell(c.slug, keys=[("manifest", c.href)])]
        for c in counts if c.overall
    ]  # fmt: skip
    zeros = [f"{c.stage} {c.name}" for c in counts if not c.overall]
    notes = [f"Zero in every artifact: {'; '.join(zeros)}."] if zeros else []
    header = ("stage", "what", "artifacts", "sum, or mean of shares", "largest in one artifact", "which")
    lead = f"The artifacts report {len(counts)} such numbers; {len(rows)} of them are not zero."
    return Section("losses", "Dropped, truncated or not understood", lead, [Table(header, rows)] if rows else [], notes)


def _shown(count: SilentCount, value: float) -> str:
    return percent(value) if count.is_share else number(value) if value % 1 else f"{value:,.0f}"


def provenance_section(artifacts: Sequence[Artifact]) -> Section:
    """Every artifact behind the report, upstream ones included."""
    origins = [origin(artifact) for artifact in artifacts]
    rows = [
        [text(o.stage), text(o.slug), Cell("", keys=[(o.key, o.href)]), text(o.commit),
         num(o.date), text(", ".join(i.split("/")[0] + " " + i.split("/")[1][:6] for i in o.inputs) or "–")]
        for o in origins
    ]  # fmt: skip
    commits = sorted({o.commit for o in origins})
    made_by = f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits"
    lead = f"{len(origins)} artifacts, made by {made_by}."
    notes = ("A key is the hash of an artifact's spec; its manifest lists the digest of every file.",)
    header = ("stage", "name", "key and manifest", "commit", "finished (UTC)", "made from")
    return Section("provenance", "Where every number comes from", lead,
                   [Table(header, rows, "Show the artifacts", is_folded=True)], notes)  # fmt: skip


def pair_sections(plan: dict[str, Any]) -> list[Section]:
    """A section for each pair of the report's `compare`."""
    pairs = plan.get(SECTION, [])
    found = evaluations(row for row in plan["rows"] if row.get("section") == SECTION)
    comparisons = [compare_sides(*(_side(name, found) for name in pair), plan["lexicon"]) for pair in pairs]
    return [_pair_section(comparison, number) for number, comparison in enumerate(comparisons, start=1)]


def _side(name: str, found: Sequence[Evaluation]) -> Side:
    experiment, seed, step = side_name(name)
    return Side.of(name, [e for e in found if e.experiment == experiment], seed, step)


def _pair_section(comparison: Comparison, number: int) -> Section:
    """The tables of a comparison under one title, after its training curves."""
    a, b = comparison.a.name, comparison.b.name
    parts = {part.anchor: part for part in comparison_sections(comparison)}
    figure = comparison_figure(comparison)
    blocks: list[Any] = [figure] if figure else []
    for anchor, part in parts.items():
        caption = f"{part.title}: {part.lead[0].lower()}{part.lead[1:]}"
        tables = [block for block in part.blocks if isinstance(block, Table)]
        is_folded = anchor != _OPEN_PART
        blocks += [replace(table, caption=caption, is_folded=True) for table in tables] if is_folded else tables
    blocks.append(_pair_sources(comparison))
    name = f"{a} (A) and {b} (B)"
    anchor = "compare" if number == 1 else f"compare-{number}"
    return Section(anchor, "Two experiments compared", f"{name}: {parts[_OPEN_PART].lead}", blocks)


def _pair_sources(comparison: Comparison) -> Table:
    """Links to the evaluations behind the differences."""
    rows = [
        [text(side.name), text(benchmark), key_cell(side.names(benchmark, "evaluate_artifact"))]
        for side in (comparison.a, comparison.b)
        for benchmark in side.evaluations
    ]
    return Table(("side", "benchmark", "artifacts"), rows, "The evaluations behind these numbers", is_folded=True)
