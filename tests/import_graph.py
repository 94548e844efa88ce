"""The imports of our own source files, read with `ast`: nothing is imported, so a broken module can be judged too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

OURS = ("rewriter", "passes", "models", "tests", "benchmarks")


@dataclass(frozen=True)
class Import:
    """One import: `module` is the dotted module reached, `name` what is taken from it (None: the module itself)."""

    importer: str
    module: str
    name: str | None
    where: str
    """Path below the root and line, as `rewriter/api.py:12`."""

    @property
    def top(self) -> str:
        """The top-level package reached."""
        return self.module.partition(".")[0]


def source_files(root: Path, package: str) -> dict[str, Path]:
    """Dotted name → file of every module of a package below `root`; the package itself is its `__init__.py`."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def public_names(init: Path) -> frozenset[str]:
    """What a package re-exports, as type checkers see it: the X of every `from module import X as X`."""
    if not init.exists():
        return frozenset()
    tree = ast.walk(ast.parse(init.read_text(encoding="utf-8"), filename=str(init)))
    aliases = [alias for node in tree if isinstance(node, ast.ImportFrom) for alias in node.names]
    return frozenset(alias.name for alias in aliases if alias.asname == alias.name)


def read_imports(root: Path, package: str) -> list[Import]:
    """Every import of a package's files, those in functions, under TYPE_CHECKING and by import_module("…") included."""
    modules = {name for ours in OURS for name in source_files(root, ours)}
    known = modules | {name.rpartition(".")[0] for name in modules}  # packages without an __init__.py too
    files = source_files(root, package)
    return [found for module, path in files.items() for found in _imports_of(root, module, path, known)]


def _imports_of(root: Path, module: str, path: Path, known: Set[str]) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        for target, name in _targets(node, module, is_package=path.name == "__init__.py"):
            where = f"{path.relative_to(root).as_posix()}:{getattr(node, 'lineno', 0)}"
            submodule = f"{target}.{name}"
            if name is not None and submodule in known:  # `from rewriter import model` reaches rewriter.model
                yield Import(module, submodule, None, where)
            else:
                yield Import(module, target, name, where)


def _targets(node: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(node.module or "", node.level, module, is_package=is_package)
        yield from ((base, alias.name) for alias in node.names)
    elif isinstance(node, ast.Call) and _is_import_call(node.func) and node.args:
        spelled = node.args[0]
        if isinstance(spelled, ast.Constant) and isinstance(spelled.value, str):
            name = spelled.value.lstrip(".")
            yield _absolute(name, len(spelled.value) - len(name), module, is_package=is_package), None


def _absolute(name: str, level: int, module: str, *, is_package: bool) -> str:
    """The dotted module that `level` leading dots and `name` mean inside `module`."""
    if level == 0:
        return name
    package = module.split(".") if is_package else module.split(".")[:-1]
    return ".".join([*package[: len(package) - level + 1], *([name] if name else [])])


def _is_import_call(function: ast.expr) -> bool:
    spelled = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    return spelled in {"import_module", "__import__"}
