"""Words counted by map and reduce: texts made here go by reference, others are made by tasks."""

from __future__ import annotations

import argparse

import map_reduce
from proxystore_dask import Client

LOCAL = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}


def main() -> None:
    options = parse_options()
    cluster = {"scheduler_file": options.scheduler} if options.scheduler else LOCAL
    texts = [map_reduce.random_text(options.words, seed) for seed in range(options.blocks)]

    with Client(**cluster) as client:
        sent = map_reduce.word_counts(client, texts).result()
        print(f"{sent.total():,} words, {len(sent):,} different ones")
        for word, count in sent.most_common(3):
            print(f"{word}: {count:,}")
        stats = client.ps_stats()
        print(f"stored: {stats.puts} texts of {stats.put_bytes / stats.puts / 1e6:.1f} MB")

        # The same, with no text on this side at all.
        made = [client.submit(map_reduce.random_text, options.words, s) for s in range(len(texts))]
        again = map_reduce.word_counts(client, made).result()
        print(f"of texts that tasks make: the same: {again == sent}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "scheduler", nargs="?", help="scheduler file of a Dask cluster; without, two local workers"
    )
    parser.add_argument("--blocks", type=int, default=4, help="how many texts; 4")
    parser.add_argument("--words", type=int, default=250_000, help="words of each; 250,000")
    return parser.parse_args()


# Dask's workers import this file too.
if __name__ == "__main__":
    main()
