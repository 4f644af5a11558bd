"""What callables take, read from their source: nothing is imported, so that torch need not load."""

from __future__ import annotations

import ast
import builtins
import importlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_origin

from typing_extensions import TypeIs

_EVALUATED = ("typing", "typing_extensions", "collections.abc", "pathlib", "pydantic")
_OWN = __name__.partition(".")[0]
_Definition = tuple[str, ast.stmt]  # module and statement


class Built:
    """Stands for a class of this package: what a node with ``_target_`` makes."""


@cache
def parameters(target: str) -> Mapping[str, Any]:
    """Types of the parameters of a class or function, by name; ``Any`` where one cannot be evaluated.

    ``target`` is its dotted name; there are none where it is not found.
    """
    found = _definition(target)
    return {} if found is None else _taken(*found)


def _definition(target: str) -> _Definition | None:
    names = target.split(".")
    for cut in range(len(names) - 1, 0, -1):
        if _tree(".".join(names[:cut])) is not None:
            found = _named(".".join(names[:cut]), names[cut])
            for method in names[cut + 1 :]:
                found = _method(*found, method) if found else None
            return found
    return None


def _taken(module: str, node: ast.stmt) -> dict[str, Any]:
    if isinstance(node, ast.FunctionDef):
        return _arguments(module, node, [])
    lineage = [*_lineage(module, node)]
    for position, (where, base) in enumerate(lineage):
        for one in base.body:
            if _is_function(one, "__init__"):
                return _arguments(where, one, lineage[position + 1 :])
    return {
        one.target.id: _evaluate(one.annotation, where)
        for where, base in reversed(lineage)
        for one in base.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        if not ast.unparse(one.annotation).startswith("ClassVar")
    }


def _arguments(
    module: str, node: ast.FunctionDef, bases: Sequence[tuple[str, ast.ClassDef]]
) -> dict[str, Any]:
    """Parameters of a function, and of what it passes its ``**kwargs`` on to."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    own = {one.arg: _evaluate(one.annotation, module) for one in named if one.arg not in ("self", "cls")}
    rest = node.args.kwarg.arg if node.args.kwarg else ""
    passed: dict[str, Any] = {}
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and any(
            k.arg is None and ast.unparse(k.value) == rest for k in call.keywords
        ):
            callee = ast.unparse(call.func)
            found = bases[0] if callee == "super().__init__" and bases else _named(module, callee)
            passed |= _taken(*found) if found else {}
    return passed | own


def _is_function(node: ast.stmt, name: str) -> TypeIs[ast.FunctionDef]:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _method(module: str, node: ast.stmt, name: str) -> _Definition | None:
    for where, base in _lineage(module, node):
        for one in base.body:
            if _is_function(one, name):
                return where, one
    return None


def _lineage(module: str, node: ast.stmt) -> Iterator[tuple[str, ast.ClassDef]]:
    """A class and its base classes, as far as they are found by name."""
    if not isinstance(node, ast.ClassDef):
        return
    yield module, node
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _named(module, base.id)):
            yield from _lineage(*found)


@cache
def _named(module: str, name: str) -> _Definition | None:
    """Find what a name stands for in a module, through its imports."""
    tree = _tree(module)
    for node in _statements(tree.body) if tree else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = _source(module, node)
                    followed = source not in (module, *_EVALUATED)
                    return (_named(source, alias.name) if followed else None) or (source, node)
    return None


def _source(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if _file(module).name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


@cache
def _tree(module: str) -> ast.Module | None:
    file = _file(module)
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


def _file(module: str) -> Path:
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a script's __main__
        spec = None
    if spec is None or spec.origin is None:
        return Path()
    if not spec.submodule_search_locations:
        return Path() if inner else Path(spec.origin)
    path = Path(spec.submodule_search_locations[0]).joinpath(*inner)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class _Names(Mapping[str, Any]):
    """Names of a module as types."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __getitem__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        found = _named(self.module, name)
        if found is None:
            return Any
        where, node = found
        if isinstance(node, ast.ImportFrom):  # of a module that is not followed further
            return getattr(importlib.import_module(where), name, Any) if where in _EVALUATED else Any
        if isinstance(node, ast.Assign):
            return _evaluate(node.value, where)
        return Built if isinstance(node, ast.ClassDef) and where.partition(".")[0] == _OWN else Any

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _evaluate(annotation: ast.expr | None, module: str) -> Any:
    if annotation is None:
        return Any
    try:
        expression = ast.Expression(annotation)
        kind = eval(compile(expression, module, "eval"), {"__builtins__": {}}, _Names(module))
        sloppy = get_origin(kind) is tuple and len(get_args(kind)) == 1  # meant is any number of them
        return tuple[get_args(kind)[0], ...] if sloppy else kind  # type: ignore[misc]
    except Exception:  # of types that need the running module
        return Any
