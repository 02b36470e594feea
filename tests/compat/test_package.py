"""Contract, section 1.1 and 1.2: the distribution, and what can be imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import subprocess
import sys

import pydantic
import pytest
from packaging.specifiers import SpecifierSet

import proxystore.proxy
import proxystore.store

# Without `proxystore.stream` and what is below it: see docs/compat.md.
MODULES = """
    proxystore proxystore.proxy proxystore.factory proxystore.serialize proxystore.warnings
    proxystore.mypy_plugin
    proxystore.connectors proxystore.connectors.protocols proxystore.connectors.local
    proxystore.connectors.file proxystore.connectors.redis proxystore.connectors.multi
    proxystore.store proxystore.store.base proxystore.store.cache proxystore.store.config
    proxystore.store.exceptions proxystore.store.executor proxystore.store.factory
    proxystore.store.future proxystore.store.lifetimes proxystore.store.metrics
    proxystore.store.ref proxystore.store.scopes proxystore.store.types proxystore.store.utils
    proxystore.utils proxystore.utils.config proxystore.utils.counter proxystore.utils.data
    proxystore.utils.environment proxystore.utils.imports proxystore.utils.tasks
    proxystore.utils.timer
""".split()

OPTIONAL = "numpy pandas polars redis zmq confluent_kafka mypy dask distributed parsl".split()


def printed_by(code: str) -> str:
    """Return what a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return run.stdout.strip()


# -- 1.1


def test_one_distribution_has_all_import_packages() -> None:
    for package in ("proxystore", "proxystore_dask", "proxystore_parsl"):
        assert importlib.util.find_spec(package) is not None
    assert importlib.metadata.version("proxystore") in SpecifierSet(">=1.0")


def test_it_is_typed() -> None:
    assert importlib.resources.files("proxystore").joinpath("py.typed").is_file()


def test_python_versions() -> None:
    supported = SpecifierSet(importlib.metadata.metadata("proxystore")["Requires-Python"])
    assert "3.9" not in supported
    assert all(version in supported for version in ("3.10", "3.11", "3.12", "3.13"))


@pytest.mark.parametrize("name", ["ConnectorConfig", "StoreConfig"])
def test_models_are_those_of_pydantic_2(name: str) -> None:
    model = getattr(importlib.import_module("proxystore.store.config"), name)
    assert issubclass(model, pydantic.BaseModel)
    assert model.model_config["extra"] == "forbid"
    assert callable(model.model_dump)
    assert callable(model.model_validate)


def test_importing_a_store_imports_nothing_optional() -> None:
    loaded = set(printed_by("import sys, proxystore.store; print(*sys.modules)").split())
    assert "proxystore.store" in loaded
    assert not loaded & set(OPTIONAL)


# -- 1.2


@pytest.mark.parametrize("module", MODULES)
def test_modules_can_be_imported(module: str) -> None:
    assert importlib.import_module(module).__name__ == module


def test_each_module_can_be_the_first_that_is_imported() -> None:
    # A circular import shows only in whoever imports its wrong end first.
    code = (
        "import importlib, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "before = set(sys.modules)\n"
        f"for name in {MODULES!r}:\n"
        "    importlib.import_module(name)\n"
        "    for module in set(sys.modules) - before:\n"
        "        if module.startswith('proxystore'): del sys.modules[module]\n"
        "print('done')\n"
    )
    assert printed_by(code) == "done"


def test_the_registry_is_reached_through_the_package() -> None:
    code = (
        "import proxystore.store.base\n"
        "print(proxystore.store.get_store('none'), proxystore.store.Store.__module__)\n"
    )
    assert printed_by(code) == "None proxystore.store.base"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "proxystore.proxy",
            "Proxy ProxyLocker ProxyOr ProxyResolveError get_factory extract is_resolved resolve "
            "FactoryType DefaultClassType DefaultHashType T",
        ),
        ("proxystore.factory", "Factory SimpleFactory LambdaFactory"),
        (
            "proxystore.serialize",
            "serialize deserialize is_bytes_like BytesLike SerializationError",
        ),
        ("proxystore.connectors.protocols", "Connector DeferrableConnector"),
        ("proxystore.connectors.local", "LocalConnector LocalKey"),
        ("proxystore.connectors.file", "FileConnector FileKey"),
        ("proxystore.connectors.redis", "RedisConnector RedisKey"),
        (
            "proxystore.connectors.multi",
            "Policy PolicyDict MultiConnector MultiKey MultiConnectorError ConnectorPolicyConfig",
        ),
        (
            "proxystore.store",
            "Store StoreConfig StoreFactory get_store get_or_create_store register_store "
            "store_registration unregister_store",
        ),
        (
            "proxystore.store.base",
            "Store StoreFactory PollingStoreFactory ConnectorKeyT ConnectorT SerializerT "
            "DeserializerT NonProxiableT",
        ),
        ("proxystore.store.config", "ConnectorConfig StoreConfig"),
        ("proxystore.store.factory", "StoreFactory PollingStoreFactory"),
        ("proxystore.store.future", "Future"),
    ],
)
def test_names_of_each_module(module: str, names: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []


def test_one_class_under_several_names() -> None:
    base = importlib.import_module("proxystore.store.base")
    assert proxystore.store.Store is base.Store
    assert proxystore.store.StoreFactory is base.StoreFactory
    assert base.StoreFactory.__module__ == "proxystore.store.factory"
