"""Rules for the source files: the direction of imports, no import cycles, JSON without NaN."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILED = "espan_kernels._C"


def sources(*folders: str) -> dict[str, ast.Module]:
    """The files in ``folders`` by module name."""
    found = {}
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


def imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """What ``tree`` imports anywhere; ``from a import b`` is a.b if that is in ``modules``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative: {ast.unparse(node)}"
            for member in (f"{node.module}.{alias.name}" for alias in node.names):
                names.add(member if member in modules else str(node.module))
    return names


def imported_at_once(node: ast.AST) -> set[str]:
    """What importing the module imports: everything except what is within functions."""
    names = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            names |= imports(child, set())
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names |= imported_at_once(child)
    return names


LATER = {"espan_kernels": ("espan", "benchmarks", "tests"), "espan": ("benchmarks", "tests")}


def test_imports_have_one_direction() -> None:
    """espan_kernels, espan, then benchmarks and tests; triton only where it is used."""
    wrong = []
    for module, tree in sources("espan_kernels", "espan", "benchmarks").items():
        folder, _, rest = module.partition(".")
        at_once = imported_at_once(tree)
        for name in imports(tree, set()):
            of_triton = name.split(".")[0] == "triton" or name.startswith("espan_kernels.triton")
            if name.split(".")[0] in LATER.get(folder, ()) or (
                of_triton and name in at_once and not rest.startswith("triton")
            ):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_import_cycles() -> None:
    trees = sources("espan_kernels", "espan")
    modules = {*trees, COMPILED}
    graph = {name: (imports(tree, modules) & modules) - {name} for name, tree in trees.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_imports_are_found() -> None:
    function = "def f():\n    from a import c, d\n    import h"
    tree = ast.parse(f"import a.b\nif x:\n    import e\n{function}")
    assert imports(tree, {"a.c"}) == {"a.b", "a.c", "a", "e", "h"}
    assert imported_at_once(tree) == {"a.b", "e"}


def test_json_is_written_without_nan() -> None:
    """JSON has neither NaN nor infinity, and `json.dumps` writes both by default."""
    calls = [
        (module, node)
        for module, tree in sources("espan", "espan_kernels", "benchmarks").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps")
    ]
    assert calls
    for module, call in calls:
        keywords = [ast.unparse(keyword) for keyword in call.keywords]
        assert "allow_nan=False" in keywords, f"{module}:{call.lineno}"
