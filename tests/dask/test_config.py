"""Dask's configuration: what can be set, where it is written down, and what comes of it."""

from __future__ import annotations

import logging
import os
import pkgutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import dask
import jsonschema
import pytest
import yaml
from distributed.utils_test import gen_cluster

import proxystore_dask
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.workflow import ThresholdError
from proxystore_dask import Client

GUIDE = Path(__file__).parents[2] / "docs/guides/dask.md"
PACKAGE = files("proxystore_dask")

TEXT = PACKAGE.joinpath("proxystore.yaml").read_text()
DEFAULTS: dict[str, Any] = yaml.safe_load(TEXT)["proxystore"]
SCHEMA = yaml.safe_load(PACKAGE.joinpath("proxystore-schema.yaml").read_text())


def valid(**settings: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid({"proxystore": settings}))


class TestWhereItIsWrittenDown:
    def test_the_schema_is_one(self):
        jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def test_the_defaults_are_valid_and_complete(self):
        assert valid(**DEFAULTS)
        described = SCHEMA["properties"]["proxystore"]["properties"]
        assert described.keys() == DEFAULTS.keys()
        assert all(each["description"] for each in described.values())

    @pytest.mark.parametrize("size", [0, 4096, "1 MiB", "500kB", "1.5 GB", ".5 tib", "4096"])
    def test_sizes(self, size):
        assert valid(threshold=size)
        assert valid(results=size)
        with dask.config.set({"proxystore.threshold": size}):
            assert proxystore_dask.client.parse_size(dask.config.get("proxystore.threshold")) >= 0

    @pytest.mark.parametrize(
        "settings",
        [
            {"threshold": "a lot"},
            {"threshold": -1},
            {"threshold": "1 k"},
            {"arguments": "both"},
            {"results": "always"},
            {"store": 3},
            {"treshold": "1 MiB"},
        ],
        ids=str,
    )
    def test_what_is_not_valid(self, settings):
        assert not valid(**settings)

    def test_every_key_has_a_comment_in_the_yaml(self):
        lines = TEXT.splitlines()
        for key in DEFAULTS:
            (at,) = (i for i, line in enumerate(lines) if line.startswith(f"  {key}:"))
            assert lines[at - 1].startswith("  # "), key

    def test_every_key_is_in_the_guide_with_its_default(self):
        rows = [
            line.split("|") for line in GUIDE.read_text().splitlines() if line.startswith("| `")
        ]
        found = {row[1].strip(" `"): row for row in rows}
        for key, value in DEFAULTS.items():
            row = found[f"proxystore.{key}"]
            assert row[3].strip(" `") == ("null" if value is None else str(value))


class TestWhatComesOfIt:
    def test_the_package_is_small_outside(self):
        names = {"Client", "StoreLifetimes", "StoreStats", "StoreUnreachableError", "attach"}
        assert set(proxystore_dask.__all__) == names
        assert PACKAGE.joinpath("py.typed").is_file()

    def test_what_is_set_before_the_import_stays(self):
        with dask.config.set({"proxystore.threshold": "7 MB"}):
            proxystore_dask.config.load_defaults()
            assert dask.config.get("proxystore.threshold") == "7 MB"

    @pytest.mark.dask
    def test_the_environment(self, tmp_path):
        path = tmp_path / "store.toml"
        with Store("from-the-environment", FileConnector(str(tmp_path / "objects"))) as store:
            store.config().write_toml(path)
        program = (
            "import numpy as np\n"
            "from proxystore_dask import Client\n"
            "def kind(value):\n"
            "    return type(value).__name__\n"
            "how = dict(processes=False, n_workers=1, dashboard_address=None, silence_logs=False)\n"
            "with Client(**how) as client:\n"
            "    print(client.submit(kind, np.ones(300)).result())\n"
            "    print(client.submit(kind, np.ones(100)).result())\n"
            "    stats = client.ps_stats()\n"
            "    print(stats.store, stats.threshold, stats.puts)\n"
        )
        env = {
            "DASK_PROXYSTORE__STORE": str(path),
            "DASK_PROXYSTORE__THRESHOLD": "2 kB",
            "DASK_PROXYSTORE__ARGUMENTS": "proxy",
            "DASK_LOGGING__PROXYSTORE_DASK": "info",
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.splitlines() == ["Proxy", "ndarray", "from-the-environment 2000 1"]
        assert "proxystore_dask.client - INFO - large arguments go through File" in done.stderr

    def test_errors_name_the_key_that_is_wrong(self):
        with (
            dask.config.set({"proxystore.threshold": "a lot"}),
            pytest.raises(ThresholdError, match=r"proxystore\.threshold in Dask's configuration"),
        ):
            Client()
        with (
            dask.config.set({"proxystore.arguments": "both"}),
            pytest.raises(ValueError, match=r"proxystore\.arguments in Dask's configuration must"),
        ):
            Client()
        with pytest.raises(ThresholdError, match="ps_threshold"):
            Client(ps_threshold="a lot")

    def test_every_logger_is_under_one_name(self):
        for module in pkgutil.iter_modules(proxystore_dask.__path__):
            __import__(f"proxystore_dask.{module.name}")
            logger = getattr(sys.modules[f"proxystore_dask.{module.name}"], "logger", None)
            assert logger is None or logger.name.startswith("proxystore_dask.")
        assert logging.getLogger("proxystore_dask").level == logging.NOTSET


@gen_cluster(nthreads=[], config={"proxystore.threshold": "3 kB"})
async def test_a_client_takes_what_is_set_when_it_is_made(scheduler):
    async with Client(scheduler.address, asynchronous=True) as client:
        assert client.ps_stats().threshold == 3000
