"""The shape of the package: what may import what, and which names are public."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import convkern
from convkern import data, functional, reference, training

pytestmark = pytest.mark.once

PACKAGE = Path(convkern.__file__).parent

# Every module may import those of lower rank; equal ranks are listed where they may be siblings.
RANKS = {
    "_kernels": 0,
    "geometry": 0,
    "errors": 0,
    "precision": 0,
    "pickles": 1,
    "threads": 1,
    "shapes": 1,
    "reference": 1,
    "arrays": 2,
    "config": 2,
    "functional": 3,
    "nn": 4,
    "models": 5,
    "freeze": 5,
    "images": 5,
    "interop": 5,
    "checkpoint": 6,
    "data": 6,
    "figure": 6,
    "bench": 6,
    "training": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}
# What may be imported from outside by the core, and what only inside functions of the others.
CORE = {name for name, rank in RANKS.items() if rank <= 4} | {"models", "__init__"}
STANDARD = set(sys.stdlib_module_names) | {"numpy"}


def modules():
    """Yield (rank name, path) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


def imports(tree, top_level_only=False):
    """Yield the dotted names that a module imports."""
    nodes = ast.walk(tree) if not top_level_only else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "convkern":
                yield from (f"convkern.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v).split("/")[-1])
def test_imports_go_down(name, path):
    for imported in imports(ast.parse(path.read_text())):
        parts = imported.split(".")
        if parts[0] != "convkern" or len(parts) == 1 or parts[1] not in RANKS:
            continue
        inside = name == parts[1] and path.parent != PACKAGE
        assert inside or RANKS[parts[1]] < RANKS[name], f"{path.name} imports {imported}"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v).split("/")[-1])
def test_only_numpy_is_needed(name, path):
    outside = {
        imported.split(".")[0]
        for imported in imports(ast.parse(path.read_text()), top_level_only=name not in CORE)
    }
    assert outside <= STANDARD | {"convkern"}


def test_import_loads_nothing_but_numpy():
    code = "import sys, convkern.data, convkern.training\n"
    code += "print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("PIL", "matplotlib", "safetensors", "torch", "rich", "tqdm", "pooch", "sklearn"):
        assert name not in done.stdout.split()


def test_public_names_exist_and_are_documented():
    for module in (convkern, functional, convkern.nn, data, training):
        for name in module.__all__:
            value = getattr(module, name)
            assert name == "nn" or inspect.getdoc(value), name


@pytest.mark.parametrize("name", [name for name in functional.__all__ if hasattr(reference, name)])
def test_the_oracle_has_the_same_signature(name):
    def shape(function):
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    assert shape(getattr(functional, name)) == shape(getattr(reference, name))


def test_every_operator_has_an_oracle():
    without = {"PackedConv2d", "conv_output_size", "to_channels_last"}
    # These gradients are held against torch's and against differences instead.
    without |= {"prelu"} | {name for name in functional.__all__ if name.endswith("_backward")}
    assert {name for name in functional.__all__ if not hasattr(reference, name)} <= without
