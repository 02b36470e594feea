"""Two of the applications of the TaPS suite, on two Dask workers: Cholesky and map-reduce.

With plain Dask, with the other distribution, with us. Their code, in ``examples``, is the same
for all: only the client is another one. The other distribution's client evicts a result when it is
first used; a result that several tasks need, as in Cholesky, is then gone for some of them.
"""

from __future__ import annotations

from dask_ways import Ways, table

# The row, its arguments.
ROWS = {
    "Cholesky, 4,000 by 4,000 in tiles of 500": ("cholesky", {"n": 4_000, "block": 500}),
    "map-reduce, 16 texts of 5 MB": ("map_reduce", {"texts": 16, "words": 1_000_000}),
}
TURNS = 5


def main() -> None:
    with Ways(["plain", "peer, files", "peer, Redis", "ours"]) as ways:
        for title, (row, what) in ROWS.items():
            found = ways.measure(row, TURNS, seconds=20, **what)
            print(*table(title, found), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
