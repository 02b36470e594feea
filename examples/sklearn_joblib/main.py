"""A grid search of scikit-learn on Dask workers: joblib hands them the data by reference."""

from __future__ import annotations

import argparse

import distributed
import joblib
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

import proxystore_dask

LOCAL = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}


def main() -> None:
    options = parse_options()
    cluster = {"scheduler_file": options.scheduler} if options.scheduler else LOCAL
    random = np.random.default_rng(0)
    features = random.normal(size=(20_000, 50))
    target = features @ random.normal(size=50) + random.normal(size=20_000)

    client_class = distributed.Client if options.plain else proxystore_dask.Client
    with client_class(**cluster) as client, joblib.parallel_config(backend="dask"):
        search = GridSearchCV(Ridge(), {"alpha": [0.1, 1, 10, 100]}, cv=5)
        search.fit(features, target)
        print(f"best of 4 by 5 folds: {search.best_params_}, R2 {search.best_score_:.3f}")
        if not options.plain:
            stats = client.ps_stats()
            print(f"stored: {stats.puts} array of {stats.put_bytes / 1e6:.0f} MB, for 20 fits")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "scheduler", nargs="?", help="scheduler file of a Dask cluster; without, two local workers"
    )
    parser.add_argument("--plain", action="store_true", help="with Dask's own client")
    return parser.parse_args()


# Dask's workers import this file too.
if __name__ == "__main__":
    main()
