"""The layout of CONTRIBUTING.md: imports run downwards, files and functions are small."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_compress"
FLOORS: list[set[str]] = [
    {"errors"},
    {"types", "atomic", "progress", "resuming", "stopping"},
    {"models", "data"},
    {"tasks"},
    {"pruning", "quantization", "substitution", "distillation"},
    {"compression_state"},
    {"saving"},
    {"export"},
    {"evaluation"},
    {"modules"},
    {"callbacks"},
    {"cli"},
]
# Hooks that Lightning's Trainer and transformers call, which import when they are called.
UPWARDS = {
    ("lightning_compress.modules.qat", "lightning_compress.callbacks"),
    ("lightning_compress.models.save_hook", "lightning_compress.saving"),
}
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def _modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, callbacks by the name they ship under."""
    found = {}
    for folder, prefix in ((ROOT / PACKAGE, PACKAGE), (ROOT / "callbacks", f"{PACKAGE}.callbacks")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((prefix, *parts))] = path
    return found


MODULES = _modules()


def _imports(name: str, *, local: bool) -> Iterator[str]:
    """The modules of the package that one imports; with ``local`` inside functions too."""
    tree = ast.parse(MODULES[name].read_text())
    nodes = ast.walk(tree) if local else _at_import(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE))
        if isinstance(node, ast.ImportFrom):
            base = _base(name, node)
            for alias in node.names if base.startswith(PACKAGE) else ():
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in MODULES else base


def _at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not those in functions or for type checkers."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node


def _base(name: str, node: ast.ImportFrom) -> str:
    """The absolute name of the module that ``from … import`` names."""
    if not node.level:
        return node.module or ""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name: str) -> None:
    room = name.split(".")[1] if "." in name else None
    if room is None:
        return  # the package itself hands names on
    for imported in _imports(name, local=True):
        other = imported.split(".")[1] if "." in imported else None
        assert other is not None, f"{name} imports the package itself"
        if other != room and (name, imported) not in UPWARDS:
            assert FLOOR[other] < FLOOR[room], f"{name} imports {imported}, which is not below it"


def test_no_import_runs_in_a_circle() -> None:
    graph = {name: set(_imports(name, local=False)) - {name} for name in MODULES}
    for name, imported in graph.items():
        if MODULES[name].name == "__init__.py":
            continue
        # A package is imported with any module in it: only names taken from it can close a circle.
        graph[name] = {one for one in imported if not name.startswith(f"{one}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {error.args[1]}")


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_small(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.count("\n") <= 320, f"{MODULES[name]}: which second idea lives in it?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False)
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            length -= 0 if doc is None else doc.count("\n") + 1  # long docstrings are welcome
            assert length <= 45, f"{MODULES[name]}:{node.lineno} {node.name} has {length} lines"
