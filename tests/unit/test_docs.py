"""The pages say what the code says: generated tables, metrics, links, and paths of files."""

from __future__ import annotations

import ast
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from selfdistill.cli import app
from selfdistill.schema import reference
from selfdistill.schema.common import Sampling
from selfdistill.schema.config import Config
from selfdistill.schema.errors import UserError
from selfdistill.schema.export import DOCS
from selfdistill.schema.methods import Antisd, Grpo
from selfdistill.schema.metrics import METRICS
from selfdistill.schema.runtime import Resources, RuntimeConfig, StageRuntime
from selfdistill.schema.training import TrainingEvaluation
from selfdistill.views.__main__ import MODULES
from small_specs import small
from training_session import REPROMPT, SDPO, SFT, Session, make_spec

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "profiles/README.md", *(ROOT / DOCS).glob("*.md")])
#: Where paths in the pages start, and what users and runs make.
PLACES = [ROOT / name for name in ("", "src/selfdistill", "benchmarks", "tests/workflow")]
MADE = (
    "/", ".snakemake", ".venv", "config/assets.local.yaml", "config/brief.yaml", "config/mine.yaml", "config/hour.yaml",
    "last_state/", "logs/", "my_", "payload/", "profile/",
    "resources/", "results/", "shards/", "state/", "workers/",
)  # fmt: skip
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


def test_generated_tables_are_up_to_date():
    assert not reference.outdated(ROOT / DOCS), "run python -m selfdistill.schema.export"


def test_a_changed_table_is_named_and_written_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: lexicon -->\n<!-- end -->\n")
    with pytest.raises(UserError, match="there is no generated table `lexicon`"):
        reference.fill(tmp_path)
    page.write_text("before\n<!-- generated: resources -->\nold\n<!-- end -->\nafter\n")
    assert reference.outdated(tmp_path) == ["page.md: a generated table is out of date"]
    reference.fill(tmp_path)
    assert reference.outdated(tmp_path) == []
    assert "old" not in page.read_text()
    assert "| `gpus` | integer from 0 | `0` | GPUs of each node. |" in page.read_text()


def test_every_table_stands_on_one_page():
    marked = [name for page in PAGES for name in re.findall(r"<!-- generated: (\S+) -->", page.read_text())]
    assert sorted(marked) == sorted(["metrics", "cures", *reference.TABLES])


def test_every_setting_is_in_a_table():
    """From the files a user edits through all nested settings, and the two that runtime.yaml checks by itself."""
    rows = {name: reference.table(name) for name in reference.TABLES}
    pending: list[type[BaseModel]] = [Config, RuntimeConfig, StageRuntime, Resources]
    seen: set[type[BaseModel]] = set()
    while pending:
        model = pending.pop()
        if model in seen:
            continue
        seen.add(model)
        for name, field in model.model_fields.items():
            assert any(re.search(rf"^\| `([a-z_]+\.)*{name}[`.]", text, re.MULTILINE) for text in rows.values()), name
            pending += _models(field.annotation)
    assert len(seen) > 25


def _models(annotation) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def test_every_metric_of_training_is_described_and_no_other(tmp_path):
    """GRPO with a KL penalty, SDPO under two contexts, SFT and a method with measures of its own, each evaluated."""
    evaluation = small(TrainingEvaluation, every_steps=2, limit=3, sampling=Sampling(max_tokens=12))
    written: set[str] = set()
    for name, method in (
        ("grpo", Grpo(kl_coefficient=0.1)),
        ("sdpo", SDPO),
        ("regenerated", SDPO.model_copy(update={"context": "regenerated"})),
        ("sft", SFT),
        ("antisd", Antisd(reprompt=REPROMPT)),
    ):
        changes = {"steps": 2, "checkpoint_every": 2, "evaluation": evaluation, "bad_update": "skip"}
        spec = make_spec(method, **changes)
        if name == "grpo":
            options = {"overlong_buffer": 4, "mask_truncated": True, "refill_rounds": 1}
            spec = spec.model_copy(update={"on_policy": spec.on_policy.model_copy(update=options)})
        session = Session(tmp_path / name, spec)
        session.run()
        written |= {key for line in session.metrics() for key in line}
    described = [metric.name for metric in METRICS]
    assert {key for key in written if not any(fnmatch(key, name) for name in described)} == set()
    assert [name for name in described if not any(fnmatch(key, name) for key in written)] == []


def test_the_page_on_the_report_names_its_sections():
    """Every title that the report's code can write, and no other."""
    titles = set()
    for path in (ROOT / "src/selfdistill/views").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        titles |= {call.args[1].value for call in calls if getattr(call.func, "id", "") == "Section"}
    page = (ROOT / DOCS / "report.md").read_text().partition("## 2.")[0]
    assert set(re.findall(r"^\| ([A-Z][^|]+?) \|", page, re.MULTILINE)) == titles


@pytest.mark.parametrize(
    "view", ["ood", "epistemic", "richness", "sft", "coverage", "forced", "tuning", "diagnostics", "cures"]
)
def test_the_page_on_the_report_names_every_column(view):
    columns = getattr(importlib.import_module(f"selfdistill.views.{MODULES[view]}"), f"{view.upper()}_COLUMNS")
    named = set(_CODE.findall((ROOT / DOCS / "report.md").read_text()))
    assert [c for c in columns if c not in named and re.sub("_(low|high)$", "", c) not in named] == []


def _anchors(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them: of headings, and those written out."""
    text = _FENCE.sub("", page.read_text())
    headings = [re.sub(r"<[^>]+>", "", heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    """Paths in backticks, from the project, the package or tests/; what a run makes (results/, payload/, ...) aside."""
    missing = []
    for code in _CODE.findall(_FENCE.sub("", page.read_text())):
        is_path = re.fullmatch(r"[\w./-]+/?", code) and (code.endswith((".py", ".smk", "/")) or "config/" in code)
        if not is_path or code.startswith(MADE):
            continue
        if not any((place / code).exists() for place in PLACES):
            missing.append(code)
    assert missing == []


def test_sections_that_the_code_cites_exist():
    """`docs/method.md 7.5` in a docstring or a comment: the page has a heading `## 7.`, and a part 7.5."""
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    sources += [path for name in ("config", "profiles", "workflow") for path in (ROOT / name).rglob("*.*ml")]
    cited = {
        (page, number)
        for path in sources
        for page, number in re.findall(r"docs/(\w+\.md),?(?: section)? (\d+(?:\.\d+)?)", path.read_text())
    }
    assert len(cited) > 15
    missing = []
    for page, number in sorted(cited):
        text = (ROOT / DOCS / page).read_text()
        heading, _, part = number.partition(".")
        if f"\n## {heading}. " not in text or (part and f"**{number} " not in text):
            missing.append(f"{page} {number}")
    assert missing == []


def test_every_command_is_on_a_page():
    text = "".join(page.read_text() for page in PAGES)
    command = typer.main.get_command(app)
    names = [f"{name} {part}" if hasattr(sub, "commands") else name
             for name, sub in command.commands.items() for part in getattr(sub, "commands", [""])]  # fmt: skip
    assert [name for name in names if f"selfdistill {name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_there_is_one_name_for_epistemic_words(page):
    assert "uncertainty word" not in page.read_text().lower()
