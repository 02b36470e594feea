"""Whole programs, as users write them, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.dask


@pytest.fixture
def run(tmp_path):
    def run(script):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(script))
        return subprocess.run(
            [sys.executable, str(path)],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


@pytest.mark.parametrize("processes", [True, False])
def test_a_client_that_nobody_closes_leaves_no_noise_and_no_files(run, processes):
    done = run(
        f"""
        import numpy as np
        from proxystore_dask import Client

        def score(data, i):
            return float(data[i::4].sum())

        if __name__ == "__main__":
            client = Client(n_workers=1, threads_per_worker=2, processes={processes},
                            dashboard_address=":0")
            data = np.ones(1_000_000)
            futures = client.map(score, [data] * 4, range(4))
            print(client.ps_store.connector.store_dir)
            print(sum(client.gather(futures)))
        """
    )
    directory, total = done.stdout.split()
    assert total == "1000000.0"
    assert not os.path.exists(directory)
    assert "Traceback" not in done.stderr
    assert "ERROR" not in done.stderr


def test_arguments_that_are_one_array_are_one_array_to_the_function(run):
    done = run(
        """
        import numpy as np
        from proxystore_dask import Client

        def write_and_read(x, y, pair):
            x[0] = 7
            return y[0], pair[0] is x, pair[1][0]

        if __name__ == "__main__":
            with Client(n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
                a, b = np.ones(1_000_000), np.zeros(1_000_000)
                for _ in range(2):
                    print(*client.submit(write_and_read, a, a, (a, b), pure=False).result())
        """
    )
    assert done.stdout.splitlines() == ["7.0 True 0.0"] * 2, done.stderr
