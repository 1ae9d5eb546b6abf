"""The package's own rules, read from its source: sizes, layers, docstrings."""

from __future__ import annotations

import ast
import functools
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "cutjax"

LAYERS = [
    {"errors", "given", "dims", "unify", "_compat", "_jit", "mirror", "placed", "held"},
    {"rules"},
    {
        *(
            "walk",
            "zeros",
            "told",
            "means",
            "liveness",
            "flow",
            "activations",
            "cost",
            "dot",
            "show",
            "graph",
            "naming",
            "proof",
        ),
        *("resize", "trace", "members", "shrink", "gate"),
        *("cut_state", "state_parts"),
    },
    {
        *("readers", "saliency", "criteria", "fuse", "budget", "allocate", "plan"),
        *("graph_json", "isomorphic", "feasible", "normalize", "pareto", "agreement"),
        "inputs",
    },
    {"sparse", "stochastic", "schedule", "recipes"},
    {"data", "models", "fit", "training", "losses", "metrics", "_resume"},
    {"recover", "merge", "bank"},
    {
        *("bench", "export", "plot", "source", "checkpoint", "_leaves", "_store"),
        *("_verify", "_adapter", "_agreement", "nnx", "linen", "equinox"),
    },
    {"demo", "demo_table", "cli", "__main__"},
]
"""Imports go down, or stay within a layer without going round. What trains models
stands below what uses it (`finetune`) and above what must not know it."""

ORDINARY = {"data", "models", "fit", "training", "losses", "metrics", "_resume"}
"""Ordinary training code: it knows nothing of pruning."""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """`cutjax.saliency.joint`; a package is called like its folder."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(tree: ast.Module, name: str) -> Iterator[tuple[str, int]]:
    """Modules imported anywhere in a file, within functions too; and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level], base]).rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in modules() else base), node.lineno


@functools.cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in files()}


def unit(module: str) -> str:
    """`saliency` of `cutjax.saliency.joint`."""
    return module.split(".")[1]


def layer(name: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if name in names]
    assert found, f"cutjax/{name} has no layer: give it one in tests/test_style.py"
    return found[0]


def edges(known: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(importer, imported) between modules below the public `cutjax`."""
    out = set()
    for name, tree in known.items():
        for target, _ in imports(tree, name):
            if target in known and name != "cutjax" and target not in ("cutjax", name):
                out.add((name, target))
    return out


def trees() -> dict[str, ast.Module]:
    return {name: tree_of(path) for name, path in modules().items()}


def check_layers(known: dict[str, ast.Module]) -> None:
    for a, b in sorted(edges(known)):
        low, high = layer(unit(b)), layer(unit(a))
        assert low <= high, f"{a} imports {b}, which lies above it"


def check_no_circles(known: dict[str, ast.Module]) -> None:
    """Peel off modules that import nothing that is left."""
    left: dict[str, set[str]] = {name: set() for name in known}
    for a, b in edges(known):
        left[a].add(b)
    while left:
        bare = [name for name, targets in left.items() if not targets & left.keys()]
        assert bare, f"imports go round among {sorted(left)}"
        for name in bare:
            del left[name]


def check_ordinary(known: dict[str, ast.Module]) -> None:
    allowed = {*ORDINARY, "errors", "_jit", "placed", "held"}
    for a, b in edges(known):
        if unit(a) in ORDINARY:
            assert unit(b) in allowed, f"{a} imports {b}, which is about pruning"
    for name, tree in known.items():
        if name != "cutjax" and unit(name) in ORDINARY:
            targets = [target for target, _ in imports(tree, name)]
            assert "cutjax" not in targets, f"{name} imports all of cutjax"


def check_private(known: dict[str, ast.Module]) -> None:
    for name, tree in known.items():
        if name != "cutjax._compat":
            for target, line in imports(tree, name):
                assert "_src" not in target.split("."), f"{name}:{line}: {target}"


def test_files_are_small():
    sizes = {str(p): len(p.read_text().splitlines()) for p in files()}
    large = {name: n for name, n in sizes.items() if n > 400}
    assert not large
    assert statistics.median(sizes.values()) < 150


def test_functions_are_small():
    """Nine in ten functions have at most 25 lines, docstrings not counted."""
    sizes = []
    for path in files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1:] if ast.get_docstring(node) else node.body
                start = first[0].lineno if first else node.end_lineno
                sizes.append(node.end_lineno - start + 1)
    assert statistics.quantiles(sizes, n=10)[-1] <= 25


def test_imports_go_downwards():
    check_layers(trees())


def test_imports_do_not_go_round():
    check_no_circles(trees())


def test_training_code_knows_nothing_of_pruning():
    check_ordinary(trees())


def test_private_jax_lives_in_one_file():
    check_private(trees())
    used = [
        p.name
        for p in files()
        if re.search(r"^(?!.*`).*jax\._src", p.read_text(), re.M)
    ]
    assert set(used) <= {"_compat.py"}


def test_only_errors_are_raised_never_asserted():
    for path in files():
        bare = [n.lineno for n in ast.walk(tree_of(path)) if isinstance(n, ast.Assert)]
        assert not bare, f"{path}: {bare}"


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """Public functions and methods of a file; whether each is a method."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith(
                    "_"
                ):
                    yield inner, True


def lacks(node: ast.FunctionDef, method: bool) -> list[str]:
    """What a public function lacks: a docstring, annotations."""
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    static = any(
        isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
    )
    args = args[1:] if method and not static else args
    args += [a for a in (node.args.vararg, node.args.kwarg) if a]
    out = [] if ast.get_docstring(node) else ["docstring"]
    out += [f"annotation of {a.arg}" for a in args if a.annotation is None]
    manager = any("contextmanager" in ast.unparse(d) for d in node.decorator_list)
    return out if node.returns or manager else [*out, "return annotation"]


@functools.cache
def exported() -> frozenset[tuple[str, str]]:
    """(module, function) of every function that `cutjax` or a package re-exports."""
    found = set()
    for path in files():
        if path.name == "__init__.py":
            for node in tree_of(path).body:
                if isinstance(node, ast.ImportFrom):
                    found |= {(node.module, alias.name) for alias in node.names}
    return frozenset(found)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_have_docstrings_and_annotations(path):
    assert ast.get_docstring(tree_of(path)) or not tree_of(path).body, (
        "module docstring"
    )
    # Rules are called with equations and values by the walker: one signature for all.
    rules = path.parent.name == "rules"
    wrong = {
        node.name: missing
        for node, method in functions(tree_of(path))
        if (missing := lacks(node, method))
        and not (rules and (name_of(path), node.name) not in exported())
    }
    assert not wrong


def test_names_that_cutjax_exports_exist_and_are_documented():
    import cutjax

    for node in tree_of(ROOT / "__init__.py").body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            public = getattr(cutjax, alias.asname or alias.name)
            assert getattr(public, "__doc__", None) or not callable(public), alias.name


# Saboteurs. -------------------------------------------------------------------------


def with_line(module: str, line: str) -> dict[str, ast.Module]:
    """The package with one more import in one module."""
    known = trees()
    source = modules()[module].read_text()
    return {**known, module: ast.parse(f"{source}\n{line}\n")}


def test_saboteur_an_import_upwards():
    for line in ("from cutjax.plan import plan", "import cutjax.recover.compensate"):
        with pytest.raises(AssertionError, match="lies above"):
            check_layers(with_line("cutjax.dims", line))
    with pytest.raises(AssertionError, match="lies above"):
        check_layers(with_line("cutjax.unify", "def f():\n    from cutjax import plan"))


def test_saboteur_imports_that_go_round():
    with pytest.raises(AssertionError, match="go round"):
        check_no_circles(with_line("cutjax.cost", "from cutjax.graph import Graph"))


def test_saboteur_training_code_that_prunes():
    with pytest.raises(AssertionError, match="about pruning"):
        check_ordinary(with_line("cutjax.fit", "from cutjax.shrink import cut"))
    with pytest.raises(AssertionError):
        check_ordinary(with_line("cutjax.fit", "import cutjax as cj"))


def test_saboteur_private_jax():
    with pytest.raises(AssertionError, match=r"jax\._src"):
        check_private(with_line("cutjax.walk", "from jax._src import core"))


def test_saboteur_a_function_without_annotations():
    bare = ast.parse("def f(a, *, b: int = 0):\n    return a")
    (node,) = bare.body
    assert lacks(node, False) == ["docstring", "annotation of a", "return annotation"]
