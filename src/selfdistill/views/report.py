"""results/report.html: the study on one page that opens offline.

The text is chosen by the numbers. Figures are inline SVG, colours and dark mode are CSS, nothing is loaded from
elsewhere; links lead to the manifests of the artifacts, relative to results/.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from selfdistill.views.claims import checks
from selfdistill.views.command import Plan, run
from selfdistill.views.coverage_claims import coverage_checks
from selfdistill.views.headline import headline
from selfdistill.views.lineage import ancestry
from selfdistill.views.sections import contexts, origins, results, training, words
from selfdistill.views.sections.blocks import Canvas, Figure, Section
from selfdistill.views.study import ModelStudy, Study, read_study
from selfdistill.views.style import BASE, Look, palette

_TEMPLATES = files("selfdistill.views") / "templates"


@dataclass(frozen=True)
class ModelPage:
    """One base model: its finding, its main figures, its sections."""

    name: str
    finding: str
    main: list[Figure]
    legend: list[Look]
    sections: list[Section]


def build(plan: Plan) -> str:
    study = read_study(plan)
    colours = palette(study.looks.values())
    canvas = Canvas(colours)
    artifacts = ancestry(study.artifacts)
    pages = [_model_page(model, study, canvas) for model in study.models]
    shared = [origins.silent_section(artifacts), origins.assumptions_section(artifacts),
              origins.provenance_section(artifacts)]  # fmt: skip
    page = (
        _environment()
        .get_template("report.html")
        .render(
            pages=pages,
            shared=[section for section in shared if section],
            palette=colours,
            style=Markup(_read("report.css")),
        )
    )
    return page.rstrip("\n") + "\n"


def _model_page(model: ModelStudy, study: Study, canvas: Canvas) -> ModelPage:
    if not model.main:
        return ModelPage(model.model, "", [], [], _present(_tables_only(model, study, canvas)))
    sections = [
        results.checks_section([*checks(model), *coverage_checks(model)]),
        results.families_section(model, study, canvas),
        results.scores_section(model, study),
        results.checkpoints_section(model, study, canvas),
        training.curves_section(model, study, canvas),
        *_tables_only(model, study, canvas),
        words.words_section(model, study, canvas),
    ]
    main = results.main_figures(model, study, canvas)
    legend = [BASE, *(study.looks[name] for name in model.experiments)]
    return ModelPage(model.model, headline(model), main, legend, _present(sections))


def _tables_only(model: ModelStudy, study: Study, canvas: Canvas) -> list[Section | None]:
    """Sections that a model may have without being among the report's experiments."""
    return [
        contexts.richness_section(model, canvas),
        contexts.sft_section(model, study),
        training.coverage_section(model, study, canvas),
    ]


def _present(sections: list[Section | None]) -> list[Section]:
    return [section for section in sections if section is not None]


def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    run("report", build)
