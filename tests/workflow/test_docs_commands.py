"""Every command and every piece of config that the pages show: run, planned, or at least accepted.

`snakemake` is dry-run on the shipped config. Cheap commands of `selfdistill` run in a small finished project; the
others (downloads, decisions about code) only have their arguments parsed. Of `make` the target and its variables must
exist, of `python` the file. Commands of the machine (apt-get, ...) are taken as they are.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml

from selfdistill.cli import app
from selfdistill.plan.experiments import resolve
from selfdistill.plan.own_graders import with_code
from selfdistill.plan.settings import load_config, merge
from selfdistill.schema.runtime import Resources, RuntimeConfig, StageRuntime
from workflow_helpers import record_deepscaler, shown_files
from workflow_project import Project

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(ROOT / name / "README.md" for name in ("config", "profiles")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MACHINE = {".", "apt-get", "generate", "git", "python3", "rm", "sbatch", "srun", "sudo"}
PROGRAMS = {"make", "snakemake", "selfdistill", "python", ".venv/bin/python", ".venv/bin/pytest", *MACHINE}
#: What stands for something else in the pages.
PLACEHOLDERS = {"EXPERIMENT": "toy_grpo", "NAME": "toy_grpo", "STAGE": "train", "TARGET": "results/ood/toy_grpo.csv"}
#: Commands of selfdistill that are run; `contamination` with files only, since the data sets need downloads.
RUN = {"assets add", "assets check", "contamination", "count-epistemic", "doctor", "estimate", "explain", "gc", "grade",
       "lock", "status", "track", "verify", "where"}  # fmt: skip


def blocks(page: Path) -> Iterator[str]:
    """Indented and fenced blocks of code."""
    text = re.sub(r"<!-- generated: .*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    yield from re.findall(r"^```(?:bash|sh|yaml|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"^[ \t]*\n((?: {4,}\S[^\n]*\n)+)", text, re.MULTILINE):
        yield textwrap.dedent(block)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line that starts with a program, each command once; here-documents aside."""
    found: dict[str, str] = {}
    for page in PAGES:
        for block in blocks(page):
            for line in re.sub(r"<<'PY'.*?^PY$", "", block, flags=re.DOTALL | re.MULTILINE).splitlines():
                command = re.sub(r"\s+#.*$", "", line).strip()
                if command and command.split()[0] in PROGRAMS:
                    found.setdefault(command, page.name)
    return [(page, command) for command, page in found.items()]


def words_of(command: str) -> list[str]:
    """The words of a command, placeholders replaced, without what follows a pipe."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command.split(" | ")[0])]
    return [word.replace("NAME", PLACEHOLDERS["NAME"]) if word.startswith("results/") else word for word in words]


def of(*programs: str) -> list:
    return [
        pytest.param(words_of(command), id=f"{page}: {command}")
        for page, command in commands()
        if words_of(command)[0] in programs
    ]


def test_the_pages_show_commands_of_every_kind():
    programs = [words_of(command)[0] for _, command in commands()]
    assert {"make", "snakemake", "selfdistill", "python"} <= set(programs)
    assert len(programs) > 60


def test_every_line_that_looks_like_a_command_is_known():
    """A line that a shell would run starts with one of the programs above; prose, trees and config do not."""
    shown = [line for page in PAGES for block in blocks(page) for line in block.splitlines()]
    suspects = [line for line in shown if re.match(r"(pip|uv|mlflow|docker|conda|squeue|pytest|ruff) ", line)]
    assert suspects == []


@pytest.mark.parametrize("words", of("make"))
def test_make_targets_and_variables_exist(words):
    makefile = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        name, is_set, value = word.partition("=")
        assert re.search(rf"\b{name}\b" if is_set else rf"^{name}:", makefile, re.MULTILINE), word
        assert name != "LOCK" or (ROOT / f"requirements/{value}.lock.txt").is_file()


@pytest.mark.parametrize("words", of("python", ".venv/bin/python", ".venv/bin/pytest"))
def test_named_scripts_exist(words):
    assert words[1] in ("-", "-m") or (ROOT / words[1]).is_file()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project as it is shipped, and the overlay of docs/configuration.md."""
    project = Project.create(tmp_path_factory.mktemp("docs") / "project", ROOT)
    shutil.copy(ROOT / "config/config.yaml", project.root / "config/config.yaml")
    write_own_files(project.root)
    record_deepscaler(project.root)  # What docs/cures.md 7 fetches first.
    return project


def write_own_files(root: Path) -> None:
    """What the pages have their readers write: a method of their own, and overlays with experiments."""
    page = ROOT / "docs/configuration.md"
    files = dict(shown_files(page, section=10)) | dict(shown_files(page, section=13))
    files |= dict(shown_files(ROOT / "docs/first_hour.md", section=4))
    (first,) = [block for block in blocks(page) if "mine_moving_teacher:" in block]
    experiments = [yaml.safe_load(text) for text in (first, files.pop("config/mine.yaml"))]
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "config/mine.yaml").write_text(yaml.safe_dump(merge(*experiments)))


@pytest.mark.parametrize("words", [param for param in of("snakemake") if "--unlock" not in param.values[0]])
def test_snakemake_commands_can_be_planned(words, shipped):
    """As bash would expand them."""
    line = shlex.join(words[1:]).replace("'results/ood/mine_{reverse_kl,moving_teacher}.csv'",
                                         "results/ood/mine_{reverse_kl,moving_teacher}.csv")  # fmt: skip
    command = f"exec {shlex.quote(sys.executable)} -m snakemake {'' if '-n' in words else '-n '}{line}"
    process = shipped.start(command=["bash", "-c", command.replace("mine.yaml", "config/mine.yaml")
                                     .replace("config/config/", "config/")])  # fmt: skip
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "This was a dry-run" in output or "Nothing to be done" in output


@pytest.mark.parametrize("words", of("selfdistill"))
def test_arguments_of_selfdistill_are_accepted(words):
    if words[1:] == ["--install-completion"]:
        return  # typer's own; it would change the shell's settings
    command, arguments = typer.main.get_command(app), words[1:]
    context = command.make_context("selfdistill", list(arguments))
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, arguments)
        context = command.make_context(name, list(arguments), parent=context)


@pytest.fixture(scope="module")
def desk(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the finished project with the files that the pages speak of."""
    project = finished.copy(tmp_path_factory.mktemp("desk") / "project")
    record = {"completion": "so \\boxed{204}.", "generated_responses": ["so \\boxed{204}."], "answer": "204",
              "reward_model": {"ground_truth": "204"}}  # fmt: skip
    for name in ("completions.jsonl", "eval.jsonl"):
        (project.root / name).write_text(json.dumps(record) + "\n")
    problems = [{"problem": f"What is {n} plus {n}?", "solution": {"final": str(2 * n)}} for n in range(5)]
    for name in ("problems.jsonl", "path/to/problems.jsonl", "path/to/problems.jsonl.zst"):
        path = project.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(problems).to_json(path, orient="records", lines=True)
    prompts = pd.DataFrame({"prompt": [[{"content": problem["problem"]}] for problem in problems], "answer": "0"})
    prompts.to_json(project.root / "train.jsonl", orient="records", lines=True)
    prompts.to_parquet(project.root / "test.parquet")
    write_own_files(project.root)
    record_deepscaler(project.root)  # What docs/cures.md 7 fetches first.
    return project


def _is_run(words: list[str]) -> bool:
    name = " ".join(words[1:3]) if words[1] == "assets" else words[1]
    is_decision = name == "lock" and len(words) > 2
    needs_data = name == "contamination" and "." not in words[2] or "--hub" in words
    return name in RUN and not is_decision and not needs_data and "-" not in words


@pytest.mark.parametrize("words", [param for param in of("selfdistill") if _is_run(param.values[0])])
def test_cheap_commands_of_selfdistill_run(words, desk):
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill.cli", *words[1:]], cwd=desk.root, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    # A finding (this machine is not ready, a decision is pending) is exit code 1; a mistake in the command is another.
    findings = {"doctor", "lock", "assets"}
    assert done.returncode in ((0, 1) if words[1] in findings else (0,)), done.stdout + done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr


def test_the_python_of_the_pages_runs(desk):
    """The here-document of the quick start, and the lines on MLflow."""
    (start,) = re.findall(r"<<'PY'\n(.*?)\n    PY\n", (ROOT / "docs/quickstart.md").read_text(), re.DOTALL)
    (mlflow,) = [block for block in blocks(ROOT / "docs/mlflow.md") if block.startswith("import mlflow")]
    subprocess.run([sys.executable, "-m", "selfdistill.cli", "track"], cwd=desk.root, check=True, timeout=300)
    for code in (textwrap.dedent(start), mlflow):
        subprocess.run([sys.executable, "-c", code], cwd=desk.root, check=True, timeout=300)


def _yaml_blocks() -> list:
    """Blocks that are config: mappings whose first key is known; comments and `...` aside."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            try:
                content = yaml.safe_load(block)
            except yaml.YAMLError:
                continue
            if isinstance(content, dict):
                found.append(pytest.param(content, id=f"{page.name}: {block.splitlines()[0][:60]}"))
    return found


SECTIONS = {"bases", "datasets", "models", "benchmarks", "recipes", "experiments", "richness", "report", "reports"}
#: Pieces that stand for a part of an experiment or of runtime.yaml.
PIECES = {"seeds", "evaluate", "coverage", "train"}


@pytest.mark.parametrize("content", [p for p in _yaml_blocks() if set(p.values[0]) <= SECTIONS | PIECES])
def test_config_of_the_pages_is_valid(content, monkeypatch, shipped):
    """Laid over the shipped config, or, where it speaks of settings and resources, as an entry of runtime.yaml."""
    monkeypatch.chdir(shipped.root)
    if "settings:" in yaml.safe_dump(content):
        _check_runtime(content)
        return
    if set(content) <= PIECES:
        content = {"experiments": {"toy_sdpo": content}}
    config = merge(yaml.safe_load((ROOT / "config/config.yaml").read_text()), content)
    for name in ("mine", "my_problems"):
        config["datasets"].setdefault(name, {"source": {"kind": "asset", "asset": name}})
    resolve(with_code(load_config(config)))


def _check_runtime(content: dict) -> None:
    if set(content) == {"train"}:
        content = {"stages": content}
    runtime = RuntimeConfig.model_validate(content)
    entries = [*runtime.stages.values(), *(entry for model in runtime.models.values() for entry in model.values())]
    assert entries
    for entry in entries:
        StageRuntime.model_validate(entry.settings)
        Resources.model_validate(entry.resources)


def test_the_pages_show_config_of_both_kinds():
    shown = [p.values[0] for p in _yaml_blocks() if set(p.values[0]) <= SECTIONS | PIECES]
    assert sum("settings:" in yaml.safe_dump(content) for content in shown) >= 3
    assert sum("settings:" not in yaml.safe_dump(content) for content in shown) >= 6
