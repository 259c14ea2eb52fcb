"""The stage lock: what moves a digest, what does not, and which decisions are accepted.

Most tests work on a small package of two stages that is written here.
"""

import json
from pathlib import Path

import pytest

from selfdistill.artifacts.code_lock import LOCK_FILE, check, compute, update
from selfdistill.artifacts.source_digest import source_digests
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import STAGES

FILES = {
    "__init__.py": "",
    "stages/__init__.py": "",
    "stages/train.py": '''
"""Train."""
from __future__ import annotations
from math import log
from typing import TYPE_CHECKING
from small.losses import mean

if TYPE_CHECKING:
    from small.store import Artifact

RATE = 0.1


def main(job: Artifact) -> float:
    """Return the loss."""
    # the loss
    return RATE * log(mean([1.0, 2.0]))
''',
    "stages/evaluate.py": """
def main(job):
    from small import store

    return store.open_artifact(job)
""",
    "losses/__init__.py": "from small.losses.aggregation import mean, median\n",
    "losses/aggregation.py": '''
from small.weights import weight

START = 0.0


def mean(values):
    """Mean of values."""
    return sum(values, START) / len(values) * weight()


def median(values):
    return sorted(values)[len(values) // 2]
''',
    "weights.py": "def weight():\n    return 1\n",
    "store.py": "def open_artifact(job):\n    return job\n",
}
VERSIONS = {"train": 1, "evaluate": 1}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "small"


@pytest.fixture
def lock_file(tmp_path: Path, package: Path) -> Path:
    """A lock in which everything is decided."""
    path = tmp_path / "stages.lock.json"
    update("all", "bump", "first version", path, package, VERSIONS)
    return path


def edit(package: Path, name: str, old: str, new: str) -> None:
    path = package / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def digests(package: Path) -> dict[str, str]:
    return {stage: state["digest"] for stage, state in compute(package, VERSIONS).items()}


def moved(package: Path, name: str, old: str, new: str) -> set[str]:
    """Stages whose digest moves with an edit."""
    before = digests(package)
    edit(package, name, old, new)
    after = digests(package)
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        pytest.param("stages/train.py", "# the loss", "# another comment", id="comment"),
        pytest.param("stages/train.py", '"""Return the loss."""', '"""Say it differently."""', id="docstring"),
        pytest.param("stages/train.py", '"""Return the loss."""', "", id="docstring removed"),
        pytest.param("losses/aggregation.py", '"""Mean of values."""', "", id="docstring of an import"),
        pytest.param("stages/train.py", "RATE = 0.1", "RATE   =   (0.1)", id="layout"),
        pytest.param("stages/train.py", "RATE * log(", "RATE * \\\n        log(", id="line break"),
        pytest.param("stages/train.py", "import Artifact", "import Artifact as Artifact", id="typing only"),
        pytest.param("losses/aggregation.py", "// 2", "// 3", id="a function no stage uses"),
    ],
)
def test_an_edit_without_effect_moves_no_digest(package, name, old, new):
    assert moved(package, name, old, new) == set()


@pytest.mark.parametrize(
    ("name", "old", "new", "stages"),
    [
        pytest.param("stages/train.py", "RATE = 0.1", "RATE = 0.2", {"train"}, id="constant"),
        pytest.param("stages/train.py", "RATE = 0.1", "RATE = True", {"train"}, id="type of a constant"),
        pytest.param("stages/train.py", "import log", "import log2 as log", {"train"}, id="another library function"),
        pytest.param("losses/aggregation.py", "START = 0.0", "START = 1.0", {"train"}, id="what an import uses"),
        pytest.param("losses/aggregation.py", "values, START", "values[1:], START", {"train"}, id="imported function"),
        pytest.param("weights.py", "return 1", "return 2", {"train"}, id="import of an import"),
        pytest.param("losses/__init__.py", "mean, median", "median as mean", {"train"}, id="re-export"),
        pytest.param("losses/__init__.py", "from", "print()\nfrom", {"train"}, id="code run at import"),
        pytest.param("store.py", "return job", "return [job]", {"evaluate"}, id="import inside a function"),
    ],
)
def test_an_edit_of_code_moves_the_stages_that_use_it(package, name, old, new, stages):
    assert moved(package, name, old, new) == stages


def test_the_sources_name_the_module_that_moved(package):
    before = source_digests(package, "small.stages.train")
    assert {"small.stages.train", "small.losses", "small.losses.aggregation", "small.weights"} == set(before)
    edit(package, "weights.py", "return 1", "return 2")
    after = source_digests(package, "small.stages.train")
    assert {name for name in before if before[name] != after[name]} == {"small.weights"}


def test_a_decided_lock_has_no_problems(package, lock_file):
    assert check(lock_file, package, VERSIONS) == []


def test_an_undecided_change_is_a_problem_until_it_is_decided(package, lock_file):
    edit(package, "weights.py", "return 1", "return int(1)")
    (problem,) = check(lock_file, package, VERSIONS)
    assert problem.startswith("train: its code changed (small.weights)") and "--same-results" in problem
    assert update("train", "same-results", "int(1) is 1", lock_file, package, VERSIONS) == ["train"]
    assert check(lock_file, package, VERSIONS) == []
    assert json.loads(lock_file.read_text())["train"]["version"] == 1


def test_every_decision_is_kept_with_the_code_it_was_about(package, lock_file):
    for number in (1, 2):
        edit(package, "weights.py", "return ", "return +")
        update("train", "same-results", f"plus {number}", lock_file, package, VERSIONS)
    entry = json.loads(lock_file.read_text())["train"]
    assert [(d["version"], d["decision"], d["reason"]) for d in entry["decisions"]] == [
        (1, "bump", "first version"),
        (1, "same-results", "plus 1"),
        (1, "same-results", "plus 2"),
    ]
    assert len({d["digest"] for d in entry["decisions"]}) == 3
    assert entry["decisions"][-1]["digest"] == entry["digest"]


def test_a_raised_version_is_recorded_with_its_reason(package, lock_file):
    edit(package, "weights.py", "return 1", "return 2")
    raised = VERSIONS | {"train": 2}
    assert "VERSION was raised to 2" in check(lock_file, package, raised)[0]
    update("train", "bump", "weights doubled", lock_file, package, raised)
    assert check(lock_file, package, raised) == []
    first, second = json.loads(lock_file.read_text())["train"]["decisions"]
    assert (first["version"], first["reason"]) == (1, "first version")
    assert (second["version"], second["decision"], second["reason"]) == (2, "bump", "weights doubled")


def test_all_takes_only_the_stages_that_need_a_decision(package, lock_file):
    edit(package, "weights.py", "return 1", "return int(1)")
    assert update("all", "same-results", "int(1) is 1", lock_file, package, VERSIONS) == ["train"]
    assert update("all", "same-results", "nothing", lock_file, package, VERSIONS) == []


@pytest.mark.parametrize(
    ("stage", "decision", "reason", "versions", "message"),
    [
        ("trian", "bump", "x", VERSIONS, "Did you mean `train`"),
        ("train", "maybe", "x", VERSIONS, "unknown decision"),
        ("train", "same-results", " ", VERSIONS, "needs a reason"),
        ("train", "bump", "x", VERSIONS, "raise VERSION above 1"),
        ("train", "same-results", "x", VERSIONS | {"train": 2}, "results change"),
    ],
)
def test_a_wrong_decision_is_refused_and_changes_nothing(
    package, lock_file, stage, decision, reason, versions, message
):
    before = lock_file.read_text()
    with pytest.raises(UserError, match=message):
        update(stage, decision, reason, lock_file, package, versions)
    assert lock_file.read_text() == before


def test_a_lowered_version_and_a_left_over_entry_are_problems(package, lock_file):
    update("train", "bump", "second", lock_file, package, VERSIONS | {"train": 2})
    problems = check(lock_file, package, {"train": 1})
    assert len(problems) == 2
    assert "Versions only grow" in problems[0]
    assert "no stage `evaluate`" in problems[1]


def test_a_stage_without_a_module_or_a_damaged_lock_is_one_clear_error(package, lock_file):
    with pytest.raises(UserError, match="stage `score`: .*score.py does not exist"):
        compute(package, {"score": 1})
    lock_file.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        check(lock_file, package, VERSIONS)


def test_every_stage_of_the_project_is_decided(project_root):
    problems = check(project_root / LOCK_FILE)
    assert not problems, "\n".join(problems)


def test_every_stage_of_the_project_depends_on_its_own_module_and_spec():
    for stage, state in compute().items():
        assert {f"selfdistill.stages.{stage}", "selfdistill.schema.stages"} <= set(state["sources"])
    assert STAGES.keys() == compute().keys()


def test_a_stage_depends_on_the_processes_that_it_starts():
    """math-verify's verdicts are made in worker processes: a change there changes results as any other does."""
    sources = {stage: set(state["sources"]) for stage, state in compute().items()}
    workers = {f"selfdistill.grading.{name}" for name in ("worker", "equivalence", "function_worker")}
    assert all(workers <= sources[stage] for stage in ("train", "rollouts", "evaluate"))
    assert not workers & sources["dataset"]
