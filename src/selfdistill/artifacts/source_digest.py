"""The code that a module depends on, and a digest of it that comments and layout do not change.

The closure is found statically, definition by definition: from everything in one module to the top-level functions,
classes and constants that it names, in any module of the package, and on from there. Statements that run at
import (neither definition nor import) count as soon as their module is reached. What a definition takes from other
packages counts by name. Imports under `if TYPE_CHECKING` and docstrings are left out. A name built at run time
(`getattr`, `import_module`) is not found.

Digests are equal under every Python version from 3.11 on, so the dump is our own: `ast.dump` and `ast.unparse` differ
between versions. Nothing beyond the standard library and `selfdistill.files` is imported here.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from selfdistill.files import sha256_text

ALL = "*"
DIGEST_LENGTH = 12
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_IMPORTS = (ast.Import, ast.ImportFrom)


def source_digests(package: Path, *modules: str) -> dict[str, str]:
    """Digest of the used part of each module behind `modules` (dotted names), by module name.

    `package` is the folder of the top-level package. Raises FileNotFoundError for a module that does not exist.
    """
    closure = _Closure(package)
    with _without_collection():
        for module in modules:
            closure.visit(module, ALL)
        return {name: closure.digest(name) for name in sorted(closure.used) if closure.used[name].parts}


@contextmanager
def _without_collection() -> Iterator[None]:
    """Many small nodes would set off the garbage collector, which looks at all that the program holds each time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def outside_digest(modules: Iterable[str]) -> str | None:
    """One digest of modules of other packages, each with what it uses of its own package; None for no modules.

    They are found where an import finds them. Raises FileNotFoundError for a module without Python source.
    """
    digests = [digest for name in modules for digest in source_digests(_package_of(name), name).items()]
    text = "\n".join(" ".join(digest) for digest in sorted(digests))
    return sha256_text(text)[:DIGEST_LENGTH] if digests else None


def _package_of(module: str) -> Path:
    """The folder of a module's top-level package; of a module that is one file, its path without the ending."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        raise FileNotFoundError(module)
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0]) if folders else Path(spec.origin or module).with_suffix("")


@dataclass
class _Used:
    """The used part of a module: positions of its statements, and what they import from elsewhere."""

    statements: set[int] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)

    @property
    def parts(self) -> bool:
        return bool(self.statements or self.imports)


@dataclass(frozen=True)
class _Source:
    """The top level of one module."""

    name: str
    path: Path

    @cached_property
    def body(self) -> list[ast.stmt]:
        return [s for s in ast.parse(self.path.read_bytes(), self.path.name).body if not _is_typing_only(s)]

    @cached_property
    def definitions(self) -> dict[str, set[int]]:
        """Name -> positions of the statements that define it."""
        found: dict[str, set[int]] = {}
        for position, statement in enumerate(self.body):
            for name in _defined(statement):
                found.setdefault(name, set()).add(position)
        return found

    @cached_property
    def imports(self) -> dict[str, tuple[str, str | None]]:
        """Local name -> (module, name in it or None for the module itself)."""
        return dict(_bindings(self, self.body))

    @cached_property
    def at_import(self) -> set[int]:
        """Positions of statements that do something when the module is imported."""
        quiet = (*_DEFINITIONS, *_IMPORTS)
        return {i for i, s in enumerate(self.body) if not isinstance(s, quiet) and not _is_docstring(s)}


class _Closure:
    """Follows names from definition to definition."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.used: dict[str, _Used] = {}
        self._sources: dict[str, _Source | None] = {}

    def visit(self, module: str, name: str) -> None:
        """Count one top-level name of a module of the package (ALL: the whole module)."""
        source = self._require(module)
        self._reach(source)
        if name == ALL or "__getattr__" in source.definitions:
            positions = set(range(len(source.body)))
        elif name in source.definitions:
            positions = source.definitions[name]
        elif name in source.imports:
            self._follow(source, name)
            return
        elif self._find(f"{module}.{name}"):
            self.visit(f"{module}.{name}", ALL)
            return
        else:
            return
        self._count(source, positions)

    def digest(self, module: str) -> str:
        source, used = self._require(module), self.used[module]
        statements = [s for i, s in enumerate(source.body) if i in used.statements and not isinstance(s, _IMPORTS)]
        text = "\n".join([*sorted(used.imports), *(_dump(s) for s in statements if not _is_docstring(s))])
        return sha256_text(text)[:DIGEST_LENGTH]

    def _reach(self, source: _Source) -> None:
        """A module reached for the first time runs, and so do the packages around it."""
        if source.name in self.used:
            return
        self.used[source.name] = _Used()
        around = self._find(source.name.rpartition(".")[0]) if "." in source.name else None
        if around:
            self._reach(around)
        self._count(source, source.at_import)

    def _count(self, source: _Source, positions: set[int]) -> None:
        new = positions - self.used[source.name].statements
        self.used[source.name].statements |= new
        for position in sorted(new):
            statement = source.body[position]
            for local, target in _bindings(source, [statement]) if isinstance(statement, _IMPORTS) else ():
                self._import(source, local, target)
            nodes = list(ast.walk(statement))
            inner = [n for n in nodes if isinstance(n, _IMPORTS) and n is not statement]
            for local, target in _bindings(source, inner):
                self._import(source, local, target)
            for name in {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}:
                if name in source.definitions:
                    self._count(source, source.definitions[name])
                elif name in source.imports:
                    self._follow(source, name)

    def _follow(self, source: _Source, name: str) -> None:
        self._import(source, name, source.imports[name])

    def _import(self, source: _Source, local: str, target: tuple[str, str | None]) -> None:
        module, name = target
        self.used[source.name].imports.add(f"{local} = {module}:{name or ''}")
        if module.split(".")[0] == self.package.name:
            self.visit(module, name or ALL)

    def _require(self, module: str) -> _Source:
        source = self._find(module)
        if source is None:
            raise FileNotFoundError(f"{self._path(module)}.py")
        return source

    def _find(self, module: str) -> _Source | None:
        if module not in self._sources:
            path = self._path(module)
            candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
            found = next((p for p in candidates if p.is_file()), None)
            self._sources[module] = _Source(module, found) if found else None
        return self._sources[module]

    def _path(self, module: str) -> Path:
        return self.package.joinpath(*module.split(".")[1:])


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def _bindings(source: _Source, statements: list[ast.stmt]) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Local names that import statements bind, with what they stand for."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.asname or alias.name.split(".")[0], (alias.name, None)
        elif isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
            module = _absolute(source, statement)
            yield from ((alias.asname or alias.name, (module, alias.name)) for alias in statement.names)


def _absolute(source: _Source, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = source.name.split(".")
    kept = parts[: len(parts) - statement.level + (source.path.name == "__init__.py")]
    return ".".join([*kept, *([statement.module] if statement.module else [])])


def _is_typing_only(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and _dump(statement.test).endswith("TYPE_CHECKING')")


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _dump(value: object) -> str:
    """A node as text: no positions, no docstrings, nothing that is empty."""
    if isinstance(value, list):
        return "[" + ",".join(_dump(item) for item in value if not _is_docstring(item)) + "]"
    if isinstance(value, ast.Constant):
        return f"Constant({value.value!r})"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = ((name, getattr(value, name, None)) for name in value._fields if name not in ("ctx", "type_comment"))
    shown = ",".join(f"{name}={_dump(item)}" for name, item in fields if item is not None and item != [])
    return f"{type(value).__name__}({shown})"
