"""What mypy says of the files in tests/typing, with and without the plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))

ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")
EXPECTED = re.compile(r"  # E: (?P<codes>.+)$")

# Where only the plugin knows the type.
ANY = {"assert-type", "no-any-return"}

CONFIG = """
[tool.mypy]
strict = true
follow_imports = "silent"
plugins = {plugins}
mypy_path = "{src}"
[[tool.mypy.overrides]]
module = ["cloudpickle.*", "lazy_object_proxy.*", "pandas.*", "xxhash.*"]
ignore_missing_imports = true
"""


def run_mypy(folder: Path, plugins: list[str]) -> subprocess.CompletedProcess[str]:
    """Type-check all files; a process of its own, since mypy tunes the garbage collector."""
    config = folder / "pyproject.toml"
    config.write_text(CONFIG.format(plugins=plugins, src=ROOT / "src"))
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--no-pretty",
        "--no-error-summary",
        "--show-traceback",
    ]
    command += ["--config-file", str(config), "--cache-dir", str(folder / "cache")]
    return subprocess.run(
        [*command, *map(str, FILES)], cwd=folder, capture_output=True, text=True, check=False
    )


def expected() -> Counter[tuple[str, int, str]]:
    """Return the errors that the files announce: file, line, code."""
    return Counter(
        (path.name, number, code.strip())
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := EXPECTED.search(line))
        for code in match["codes"].split(",")
    )


def found(output: str) -> Counter[tuple[str, int, str]]:
    """Return the errors that mypy has reported."""
    errors = [line for line in output.splitlines() if ": error: " in line]
    matches = [ERROR.match(line) for line in errors]
    assert all(matches), output
    return Counter((Path(m["file"]).name, int(m["line"]), m["code"]) for m in matches if m)


def of_1_15(errors: Counter[tuple[str, int, str]]) -> Counter[tuple[str, int, str]]:
    """Leave out what mypy 1.15 cannot say: there a failing operator of a proxy is Any."""
    failing = {("operators.py", "operator"), ("operators.py", "assert-type")}
    return Counter({e: n for e, n in errors.items() if (e[0], e[2]) not in failing})


def test_mypy_sees_through_proxies(tmp_path: Path) -> None:
    run = run_mypy(tmp_path, ["proxystore.mypy_plugin"])
    assert run.returncode == 1, run.stdout + run.stderr
    missing, unexpected = expected() - found(run.stdout), found(run.stdout) - expected()
    if version("mypy").startswith("1.15."):
        missing, unexpected = of_1_15(missing), of_1_15(unexpected)
    assert not missing, f"{missing}\n{run.stdout}"
    assert not unexpected, f"{unexpected}\n{run.stdout}"


def test_without_the_plugin_what_is_forwarded_is_any(tmp_path: Path) -> None:
    run = run_mypy(tmp_path, [])
    assert run.returncode == 1, run.stdout + run.stderr
    more = {error for error in found(run.stdout) - expected() if error[2] not in ANY}
    assert not more, f"{more}\n{run.stdout}"
    assert 'Expression is of type "Any", not "float"' in run.stdout


def test_plugin_is_what_mypy_asks_for() -> None:
    from mypy.plugin import Plugin

    from proxystore.mypy_plugin import ProxyStoreMypyPlugin, plugin

    assert plugin("1.15.0") is ProxyStoreMypyPlugin
    assert issubclass(ProxyStoreMypyPlugin, Plugin)
