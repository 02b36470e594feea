"""Who may import whom: a module imports from below, or from the left on its own line."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The floors, lowest first. A name stands for the module and all modules below it that have no
# name of their own here; a package comes after the modules that it re-exports.
FLOORS = """
    proxystore
    proxystore.mypy_plugin
    proxystore._compat proxystore.warnings proxystore.utils
    proxystore.factory proxystore.proxy
    proxystore.serialize
    proxystore.connectors.protocols proxystore.connectors.exceptions proxystore.connectors._base
        proxystore.connectors
    proxystore.store.types
        proxystore.store.exceptions proxystore.store.cache proxystore.store.config
        proxystore.store._wire proxystore.store._registry proxystore.store._observe
        proxystore.store._failures proxystore.store._codec proxystore.store._inflight
        proxystore.store._backoff proxystore.store._threads
        proxystore.store.factory
        proxystore.store.utils proxystore.store.metrics proxystore.store.future
        proxystore.store.info
        proxystore.store.lifetimes proxystore.store.ref proxystore.store.consume
        proxystore.store.base
        proxystore.store.scopes proxystore.store.executor
        proxystore.store
    proxystore.workflow
    proxystore.stream
    proxystore.testing
    proxystore.cli
""".split()

# get_or_create_store() makes a Store when called; Store registers itself.
LATE = {("proxystore.store._registry", "proxystore.store.base.Store")}

INTEGRATIONS = ("proxystore_dask", "proxystore_parsl")

# Optional, and slow to import: a thousand workers read them from one file system at once.
HEAVY = set("numpy pandas polars redis zmq dask distributed parsl rich mypy".split())


def floor(module: str) -> str:
    """Return the name in FLOORS that a module, or a name in one, belongs to."""
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return module


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """Yield the dotted path of each name that is imported when `module` runs."""
    package = module if is_package else module.rpartition(".")[0]
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo += node.orelse  # annotations may name anything
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def objections(module: str, target: str) -> Iterator[str]:
    """Yield what is wrong with `module` importing `target`."""
    room, _, name = target.partition(".")
    if module.startswith(INTEGRATIONS):
        if room in INTEGRATIONS and room != module.partition(".")[0]:
            yield "integrations do not need each other"
        if room == "proxystore" and any(
            part.startswith("_") and not part.endswith("__") for part in name.split(".")
        ):
            yield "integrations use public names only"
    elif room in INTEGRATIONS:
        yield "proxystore does not know its integrations"
    elif room == "proxystore" and (module, target) not in LATE:
        if floor(module) == "proxystore" != module:
            yield f"{module} is on no floor, give it one in FLOORS"
        if FLOORS.index(floor(target)) > FLOORS.index(floor(module)):
            yield "imports go down or left, see FLOORS"


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the name and file of each module we ship."""
    for folder in (ROOT / "src", ROOT / "integrations"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), path


def test_imports_keep_to_the_floors() -> None:
    found = [
        f"{module} imports {target}: {objection}"
        for module, path in modules()
        for target in imports(module, path.read_text(), is_package=path.name == "__init__.py")
        for objection in objections(module, target)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("proxystore.store.base", "from proxystore.store.cache import LRUCache", True),
        ("proxystore.store.cache", "from proxystore.store.base import Store", False),
        ("proxystore.store.cache", "import proxystore.store.base", False),
        ("proxystore.store.cache", "from proxystore.store import base", False),
        ("proxystore.store.cache", "from .base import Store", False),
        ("proxystore.store.cache", "def late():\n    from proxystore.store import Store", False),
        ("proxystore.store.cache", "if TYPE_CHECKING:\n    from .base import Store", True),
        ("proxystore.store._registry", "from proxystore.store.base import Store", True),
        ("proxystore.proxy", "from proxystore.store import get_store", False),
        ("proxystore.utils.data", "from proxystore import __version__", True),
        ("proxystore.nowhere", "from proxystore import __version__", False),
        ("proxystore.cli", "import proxystore_dask", False),
        ("proxystore_dask.client", "from proxystore.store import Store", True),
        ("proxystore_dask.client", "from proxystore_dask._graph import load", True),
        ("proxystore_dask.client", "from proxystore.store import _wire", False),
        ("proxystore_dask.client", "import proxystore.store._wire", False),
        ("proxystore_dask.client", "import proxystore_parsl", False),
    ],
)
def test_the_check_itself(module: str, source: str, allowed: bool) -> None:
    found = [x for target in imports(module, source) for x in objections(module, target)]
    assert (not found) is allowed, found


def test_importing_a_store_imports_nothing_optional() -> None:
    code = "import sys, proxystore.store; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(run.stdout.split())
    assert "proxystore.store" in loaded
    assert not loaded & HEAVY
