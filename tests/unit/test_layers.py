"""The layers of the package: a module imports only what lies below it.

Two sentences depend on it: the Snakefile never imports torch, vllm, transformers, mlflow or pandas; and training code
does not know that artifacts, Snakemake or MLflow exist.
"""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfdistill

PACKAGE = Path(selfdistill.__file__).parent

#: Lowest first. Units (modules or packages directly under selfdistill) of one line do not import each other.
LAYERS = (
    {"schema", "files", "parent", "epistemic", "statistics", "seeds", "losses"},
    {"prompts", "thinking", "grading", "generation", "estimate", "artifacts", "assets", "toy", "diagnostics"},
    {"contexts", "contamination", "plan", "rollouts", "sources"},
    {"training", "run", "tracking", "views", "reproduction", "exchange"},
    {"stages", "cli"},
)
#: Text, numbers and tensors in and out: these know of no artifact, no plan and no tracking.
DOMAIN = {
    "prompts", "epistemic", "statistics", "seeds", "losses", "grading", "generation", "contexts", "contamination",
    "toy", "training", "estimate", "rollouts", "thinking",
}  # fmt: skip
ARTIFACTS = {"artifacts", "plan", "assets", "run", "stages", "views", "tracking", "reproduction", "exchange"}
HEAVY = ("torch", "vllm", "transformers", "mlflow", "pandas", "datasets", "accelerate")
#: Units and modules that every Slurm job loads when it parses the Snakefile.
PLANNING = ("schema/", "files.py", "artifacts/store.py", "artifacts/refusal.py", "artifacts/lineage.py", "plan/")
#: Text in, text or numbers out; tensors only in losses. No tables there, and no networks.
LIGHT_DOMAIN = {
    "prompts", "epistemic", "statistics", "seeds", "grading", "contexts", "contamination", "estimate", "rollouts",
    "thinking",
}  # fmt: skip


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path, *, typing_too: bool = True) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of a file, inside functions too."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not typing_too:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in (parts if node.module == "selfdistill" else [node.module]))
        pending.extend(ast.iter_child_nodes(node))


def first_party(path: Path) -> Iterator[tuple[int, str]]:
    """(line, unit) of every import of another unit of the package; the package itself only holds the version."""
    for line, name in imported(path):
        package, _, rest = name.partition(".")
        unit = rest.split(".")[0]
        if package == "selfdistill" and unit not in ("", unit_of(path)):
            yield line, unit


def third_party(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of everything imported at run time from elsewhere."""
    return ((line, name.split(".")[0]) for line, name in imported(path, typing_too=False))


def test_every_module_has_a_layer():
    known = set().union(*LAYERS)
    assert {unit_of(path) for path in modules()} - known == set(), "give the new module its place in LAYERS"


def test_no_module_imports_its_own_layer_or_a_higher_one():
    height = {unit: level for level, units in enumerate(LAYERS) for unit in units}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {unit}"
        for path in modules()
        for line, unit in first_party(path)
        if height[unit] >= height[unit_of(path)]
    ]
    assert not wrong


def test_domain_code_knows_no_artifacts_no_snakemake_and_no_mlflow():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in modules()
        if unit_of(path) in DOMAIN
        for line, name in [
            *((at, unit) for at, unit in first_party(path) if unit in ARTIFACTS),
            *((at, name) for at, name in third_party(path) if name in ("mlflow", "snakemake")),
        ]
    ]
    assert not wrong


def test_planning_code_imports_nothing_heavy_anywhere():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in modules()
        if str(path.relative_to(PACKAGE)).startswith(PLANNING)
        for line, name in third_party(path)
        if name in (*HEAVY, "numpy", "scipy", "pyarrow")
    ]
    assert not wrong


def test_text_code_imports_no_tensors_and_no_tables():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in modules()
        if unit_of(path) in LIGHT_DOMAIN
        for line, name in third_party(path)
        if name in HEAVY
    ]
    losses = {name for path in modules() if unit_of(path) == "losses" for _, name in third_party(path)}
    assert not wrong
    assert losses - set(sys.stdlib_module_names) - {"selfdistill"} <= {"torch"}


@pytest.mark.parametrize("module", ["selfdistill.plan.workspace"])
def test_loading_the_plan_loads_nothing_heavy(module, record_property):
    code = (
        "import sys, time; start = time.process_time(); "
        f"import {module}; print(time.process_time() - start); print(*sys.modules)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split("\n", 1)
    record_property("import_cpu_seconds", seconds)
    print(f"import {module}: {float(seconds):.3f} s of CPU, {time.monotonic() - started:.1f} s with the interpreter")
    assert not {*HEAVY, "numpy", "scipy", "pyarrow"} & {name.split(".")[0] for name in loaded.split()}
