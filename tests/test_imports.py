"""The order of the modules: no import cycles, and no package imports one that is built on it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILED = "espan_kernels._C"
LAYERS = ("espan_kernels", "espan")  # a later one may import an earlier one


def sources() -> dict[str, Path]:
    """The files of both packages by module name."""
    found = {}
    for path in (p for layer in LAYERS for p in (ROOT / layer).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, tree: ast.AST, modules: set[str]) -> set[str]:
    """The members of ``modules`` that ``module`` imports anywhere, also within a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names} - {COMPILED}
            # `from package import module` needs the package's __init__ only if a name is from it.
            names |= members & modules if members <= modules else members | {str(node.module)}
    return (names & modules) - {module}


def graph() -> dict[str, set[str]]:
    files = sources()
    trees = {module: ast.parse(path.read_text("utf-8")) for module, path in files.items()}
    return {module: imports(module, tree, set(files)) for module, tree in trees.items()}


def test_no_cycles() -> None:
    try:
        tuple(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_layers() -> None:
    for module, imported in graph().items():
        layer = LAYERS.index(module.split(".")[0])
        later = [name for name in imported if LAYERS.index(name.split(".")[0]) > layer]
        assert not later, f"{module} imports {later}"


def test_cycles_are_found() -> None:
    modules = {"a", "a.b", "a.c"}
    b = ast.parse("def f():\n    from a import c")
    c = ast.parse("import a.b")
    assert imports("a.b", b, modules) == {"a.c"}
    assert imports("a.c", c, modules) == {"a.b"}
