"""Measure how the package is built: rooms, lines, functions, imports, public names and recipe fields.

``make house`` prints Markdown tables; ``python .ci/house.py [PACKAGE_DIR] [--json]`` measures any package. The script
only reads source text, so it needs no installation and runs on any commit.

A code line is a line that is not blank, not a comment and not part of a docstring.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

SMALL_FILE = 80
LARGE_FILE = 400
LONG_FUNCTION = 80
SMALL_HELPER = 6
SINGLE_FILES = "files"

_LAYOUT = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)
Function = ast.FunctionDef | ast.AsyncFunctionDef
Edges = dict[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    room: str
    is_package: bool
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.source)

    @cached_property
    def code(self) -> frozenset[int]:
        """The numbers of the code lines."""
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type not in _LAYOUT:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                lines.difference_update(_span(node.body[0]))
        return frozenset(lines)

    def code_lines(self, node: ast.stmt) -> int:
        """Count the code lines of a statement, decorators not included."""
        return len(self.code.intersection(_span(node)))


class FunctionSize(NamedTuple):
    """A function, named ``module:line name``, and its code lines; inner functions count in the outer one too."""

    lines: int
    name: str


class Import(NamedTuple):
    """One name that a statement imports at run time: ``import a.b`` or ``from a import name``."""

    module: str
    name: str | None
    in_function: bool
    line: int


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def read_package(folder: Path) -> dict[str, Module]:
    """Read every source file below ``folder``, by module name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join((folder.name, *(parts[:-1] if is_package else parts)))
        room = parts[0] if len(parts) > 1 else SINGLE_FILES
        found[name] = Module(name, room, is_package, path.read_text(encoding="utf-8"))
    return found


# Lines and functions


def rooms(modules: Iterable[Module]) -> dict[str, tuple[int, int]]:
    """Return files and code lines by room; files without code are left out."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for module in modules:
        if module.code:
            files[module.room] += 1
            lines[module.room] += len(module.code)
    return {room: (files[room], lines[room]) for room in sorted(files)}


def function_sizes(modules: Iterable[Module]) -> list[FunctionSize]:
    """Return every function, inner ones on their own too, the longest first."""
    return sorted(
        (
            FunctionSize(module.code_lines(node), f"{module.name}:{node.lineno} {node.name}")
            for module in modules
            for node in ast.walk(module.tree)
            if isinstance(node, _FUNCTIONS)
        ),
        reverse=True,
    )


def percentile(values: Iterable[int], share: float) -> int:
    """Return the smallest value that at least ``share`` of the values do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else 0


# Imports


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _runtime_nodes(nodes: Iterable[ast.AST], *, in_function: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node that is not for type checkers only, and whether it lies in a function."""
    for node in nodes:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            inner: Iterable[ast.AST] = node.orelse
        else:
            yield node, in_function
            inner = ast.iter_child_nodes(node)
        inside = in_function or isinstance(node, _FUNCTIONS)
        yield from _runtime_nodes(inner, in_function=inside)


def imports(module: Module) -> Iterator[Import]:
    """Yield what a module imports at run time."""
    for node, in_function in _runtime_nodes(module.tree.body, in_function=False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, in_function, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(_absolute(module, node), alias.name, in_function, node.lineno)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def edges(modules: dict[str, Module], *, in_functions: bool) -> Edges:
    """Return which module imports which other ones of the package."""
    found: Edges = {name: set() for name in modules}
    for name, module in modules.items():
        for item in imports(module):
            target = f"{item.module}.{item.name}"
            target = target if target in modules else item.module
            if target in modules and target != name and (in_functions or not item.in_function):
                found[name].add(target)
    return found


def circles(graph: Edges) -> list[list[str]]:
    """Return the sets of modules that import each other, directly or through others."""
    reached = {name: _reachable(graph, name) for name in graph}
    knots = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(knot) for knot in knots if len(knot) > 1)


def _reachable(graph: Edges, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen


def in_function_imports(modules: dict[str, Module], package: str) -> dict[str, list[str]]:
    """Return the import statements in functions as ``module:line target``: the package's own, libraries, stdlib."""
    found: dict[str, dict[tuple[str, int], str]] = {"own": {}, "third_party": {}, "stdlib": {}}
    for module in modules.values():
        for item in imports(module):
            root = item.module.partition(".")[0]
            if item.in_function:
                kind = "own" if root == package else "stdlib" if root in sys.stdlib_module_names else "third_party"
                found[kind][module.name, item.line] = f"{module.name}:{item.line} {item.module}"
    return {kind: list(statements.values()) for kind, statements in found.items()}


# Names


def _module_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those in ``if`` and ``try`` blocks included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _module_level(node.body + node.orelse)
        if isinstance(node, ast.Try):
            yield from _module_level([*node.finalbody, *(s for handler in node.handlers for s in handler.body)])


def _bound(node: ast.stmt) -> list[str]:
    """Return the names that a class, function, type alias or assignment binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [item.id for target in targets for item in ast.walk(target) if isinstance(item, ast.Name)]


def public_names(modules: Iterable[Module]) -> list[str]:
    """Return the classes, functions and constants at module level whose name has no leading underscore."""
    return sorted(
        {
            f"{module.name}.{name}"
            for module in modules
            for node in _module_level(module.tree.body)
            for name in _bound(node)
            if not name.startswith("_")
        }
    )


def small_helpers(modules: Iterable[Module]) -> list[str]:
    """Return the private functions at module level of a few lines that are named once outside of themselves."""
    found = []
    for module in modules:
        uses = _loads(module.tree)
        for node in module.tree.body:
            if not isinstance(node, _FUNCTIONS) or not node.name.startswith("_"):
                continue
            outside = uses[node.name] - _loads(node)[node.name]
            if outside == 1 and module.code_lines(node) <= SMALL_HELPER:
                found.append(f"{module.name}.{node.name}")
    return sorted(found)


def _loads(tree: ast.AST) -> Counter[str]:
    return Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


# Recipe fields


class Section(NamedTuple):
    """A pydantic class and where it is defined."""

    module: str
    name: str


class Recipes:
    """Follows the annotations of pydantic classes from file to file, without importing anything.

    A recipe is a pydantic class whose field ``command`` is a ``Literal``. A leaf is a field that holds no further
    pydantic class of the package. Where a field offers several classes, equal paths count once.
    """

    def __init__(self, modules: dict[str, Module]) -> None:
        self._modules = modules
        self._scopes = {name: self._scope(module) for name, module in modules.items()}

    def leaves(self) -> dict[str, list[str]]:
        """Return the dotted paths of the leaf fields, by the value of ``command``."""
        found = {}
        for module, scope in self._scopes.items():
            for node in scope.values():
                if not isinstance(node, ast.ClassDef) or not self._is_section(module, node):
                    continue
                field = next((f for f in node.body if isinstance(f, ast.AnnAssign) and _bound(f) == ["command"]), None)
                if field is not None and (command := _literal(field.annotation)):
                    found[command] = sorted(self._paths(Section(module, node.name), ()))
        return dict(sorted(found.items()))

    def _scope(self, module: Module) -> dict[str, ast.expr | ast.ClassDef | str]:
        """Return what each name of a module stands for: a class, an expression, or the dotted path of an import."""
        scope: dict[str, ast.expr | ast.ClassDef | str] = {}
        for node in _module_level(module.tree.body):
            if isinstance(node, ast.ClassDef):
                scope[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                scope.update(dict.fromkeys(_bound(node), node.value))
            elif isinstance(node, ast.ImportFrom):
                scope.update({a.asname or a.name: f"{_absolute(module, node)}.{a.name}" for a in node.names})
            elif isinstance(node, ast.Import):
                scope.update({a.asname: a.name for a in node.names if a.asname})
        return scope

    def _find(self, dotted: str) -> tuple[str, ast.expr | ast.ClassDef] | None:
        """Return the module and the meaning of ``package.module.name``; None outside the package."""
        module, _, name = dotted.rpartition(".")
        found = self._scopes.get(module, {}).get(name)
        if isinstance(found, str):
            return self._find(found)
        return None if found is None else (module, found)

    def _dotted(self, module: str, node: ast.expr) -> str | None:
        """Return the dotted path that a name or an attribute stands for."""
        if isinstance(node, ast.Name):
            meaning = self._scopes[module].get(node.id)
            return meaning if isinstance(meaning, str) else f"{module}.{node.id}"
        if isinstance(node, ast.Attribute) and (base := self._dotted(module, node.value)):
            return f"{base}.{node.attr}"
        return None

    def _is_section(self, module: str, node: ast.ClassDef) -> bool:
        for base in node.bases:
            dotted = self._dotted(module, base.value if isinstance(base, ast.Subscript) else base) or ""
            found = self._find(dotted)
            if dotted == "pydantic.BaseModel":
                return True
            if found and isinstance(found[1], ast.ClassDef) and self._is_section(found[0], found[1]):
                return True
        return False

    def _fields(self, section: Section) -> dict[str, tuple[str, ast.expr]]:
        """Return module and annotation of each field, inherited ones included."""
        module, node = self._find(".".join(section)) or ("", None)
        if not isinstance(node, ast.ClassDef):
            return {}
        inherited: dict[str, tuple[str, ast.expr]] = {}
        for base in reversed(node.bases):
            dotted = self._dotted(module, base.value if isinstance(base, ast.Subscript) else base) or ""
            inherited |= self._fields(Section(*dotted.rpartition(".")[::2]))
        return inherited | {name: (module, annotation) for name, annotation in _fields(node).items()}

    def _paths(self, section: Section, above: tuple[Section, ...]) -> set[str]:
        paths = set()
        for name, (module, annotation) in self._fields(section).items():
            inner = self._sections(module, annotation) - {section, *above}
            if inner:
                paths |= {f"{name}.{path}" for s in inner for path in self._paths(s, (*above, section))}
            else:
                paths.add(name)
        return paths

    def _sections(self, module: str, annotation: ast.expr) -> set[Section]:
        """Return the pydantic classes that an annotation names, aliases followed."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            return self._sections(module, ast.parse(annotation.value, mode="eval").body)
        if isinstance(annotation, ast.Name | ast.Attribute):
            found = self._find(self._dotted(module, annotation) or "")
            if found is None:
                return set()
            where, node = found
            if isinstance(node, ast.ClassDef):
                return {Section(where, node.name)} if self._is_section(where, node) else set()
            return self._sections(where, node)
        if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
            inner = annotation.slice
            if annotation.value.id == "Literal":
                return set()
            if annotation.value.id == "Annotated" and isinstance(inner, ast.Tuple):
                inner = inner.elts[0]
            return self._sections(module, inner)
        parts = (part for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr))
        return {section for part in parts for section in self._sections(module, part)}


def _fields(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Return name and annotation of the fields that a class body declares."""
    return {
        name: field.annotation
        for field in node.body
        if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation)
        for name in _bound(field)
        if not name.startswith("_") and name != "model_config"
    }


def _literal(annotation: ast.expr) -> str | None:
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        value = annotation.slice
        if annotation.value.id == "Literal" and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    return None


# The report


def measure(folder: Path) -> dict[str, object]:
    """Measure the package in ``folder``; keys and lists are what ``--json`` prints."""
    modules = read_package(folder)
    if not modules:
        raise SystemExit(f"error: {folder} holds no Python files; give the folder of a package")
    sizes = [len(module.code) for module in modules.values() if module.code]
    functions = function_sizes(modules.values())
    lengths = [function.lines for function in functions]
    at_import = circles(edges(modules, in_functions=False))
    return {
        "rooms": {
            room: {"files": files, "code_lines": lines} for room, (files, lines) in rooms(modules.values()).items()
        },
        "files": len(sizes),
        "code_lines": sum(sizes),
        "small_files": _named(modules, lambda lines: 0 < lines < SMALL_FILE),
        "large_files": _named(modules, lambda lines: lines > LARGE_FILE),
        "functions": len(functions),
        "function_median": statistics.median(lengths) if lengths else 0,
        "function_p95": percentile(lengths, 0.95),
        "function_longest": lengths[0] if lengths else 0,
        "long_functions": {f.name: f.lines for f in functions if f.lines > LONG_FUNCTION},
        "circles": at_import,
        "circles_with_in_function_imports": [
            knot for knot in circles(edges(modules, in_functions=True)) if knot not in at_import
        ],
        "in_function_imports": in_function_imports(modules, folder.name),
        "public_names": public_names(modules.values()),
        "small_helpers_used_once": small_helpers(modules.values()),
        "recipe_fields": Recipes(modules).leaves(),
    }


def _named(modules: dict[str, Module], fits: Callable[[int], bool]) -> dict[str, int]:
    return {name: len(module.code) for name, module in modules.items() if fits(len(module.code))}


def markdown(found: Mapping[str, Any]) -> str:
    """Write what :func:`measure` found as two Markdown tables."""
    total = {"files": found["files"], "code_lines": found["code_lines"]}
    by_room = [
        (room, room_size["files"], room_size["code_lines"])
        for room, room_size in [*found["rooms"].items(), ("**total**", total)]
    ]
    inner = found["in_function_imports"]
    leaves = found["recipe_fields"]
    rows = [
        (f"files under {SMALL_FILE} code lines", len(found["small_files"])),
        (f"files over {LARGE_FILE} code lines", _listed(found["large_files"])),
        ("functions", found["functions"]),
        ("median function", found["function_median"]),
        ("95th percentile", found["function_p95"]),
        ("longest function", found["function_longest"]),
        (f"functions over {LONG_FUNCTION} code lines", _listed(found["long_functions"])),
        ("import circles", _listed(" ".join(knot) for knot in found["circles"])),
        (
            "circles through in-function imports only",
            _listed(" ".join(knot) for knot in found["circles_with_in_function_imports"]),
        ),
        ("in-function imports", sum(map(len, inner.values()))),
        ("of libraries", len(inner["third_party"])),
        ("of the package itself", len(inner["own"])),
        ("of the standard library", len(inner["stdlib"])),
        ("public names", len(found["public_names"])),
        (f"private helpers used once, at most {SMALL_HELPER} lines", len(found["small_helpers_used_once"])),
        ("recipe leaf fields", sum(map(len, leaves.values()))),
        *((f"of {command}", len(paths)) for command, paths in leaves.items()),
    ]
    return "\n".join([*_table(("room", "files", "code lines"), by_room), "", *_table(("measure", "value"), rows)])


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return f"{len(found)}: {'; '.join(found)}" if found else "0"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    rule = ("---", *["---:"] * (len(head) - 1))
    return [f"| {' | '.join(map(str, row))} |" for row in (head, rule, *rows)]


def main() -> None:
    """Print the measures of a package."""
    parser = argparse.ArgumentParser(description="Measure how a package is built.")
    default = Path(__file__).resolve().parents[1] / "esckit"
    parser.add_argument("package", type=Path, nargs="?", default=default, help="the package's folder (default: esckit)")
    parser.add_argument("--json", action="store_true", help="print JSON, with the names behind every count")
    given = parser.parse_args()
    found = measure(given.package.resolve())
    sys.stdout.write((json.dumps(found, indent=2) if given.json else markdown(found)) + "\n")


if __name__ == "__main__":
    main()
