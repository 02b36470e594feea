"""Run every benchmark beside this file, one process each, and print what they print.

    python benchmarks/run.py               all of them, in order of name
    python benchmarks/run.py store dask    only those whose name contains a word

A benchmark that fails does not stop the others; the exit code says that one did.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(words: list[str]) -> int:
    """Run the benchmarks whose name contains one of `words` (none given: all)."""
    scripts = [
        script
        for script in sorted(HERE.glob("bench_*.py"))
        if not words or any(word in script.stem for word in words)
    ]
    if not scripts:
        print(f"no bench_*.py in {HERE} matches {words}", file=sys.stderr)
        return 2

    if not os.environ.get("PROXYSTORE_PEER_PYTHON"):
        print("PROXYSTORE_PEER_PYTHON is not set: without the other distribution's column")
    failed = []
    for script in scripts:
        print(f"\n=== {script.stem.removeprefix('bench_')} ===", flush=True)
        start = time.perf_counter()
        # A process each: imports, caches and peak memory of one must not show in the next.
        code = subprocess.run([sys.executable, str(script)], check=False).returncode
        print(f"--- {time.perf_counter() - start:.0f} s", flush=True)
        if code != 0:
            failed.append(f"{script.name} (exit code {code})")

    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
