"""Every Python block of the README and the documentation runs.

The blocks of a page are one program, run in order in a fresh directory. A block is left
out when the line before it is a comment ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)")
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


def program(page: str) -> str:
    """Return the Python blocks of a page, each on the lines where it stands in the page.

    So the line numbers of a traceback are those of the page.
    """
    code: list[str] = []
    indent = ""
    inside = runs = False
    before = ""
    for line in page.splitlines():
        fence = FENCE.match(line)
        if fence:
            runs = not inside and fence["language"] == "python" and not NOT_RUN.search(before)
            indent = indent if inside else fence["indent"]
            inside = not inside
            code.append("")
        else:
            code.append(line.removeprefix(indent) if runs else "")
        before = line
    return "\n".join(code) + "\n"


def cases() -> list[object]:
    """Return the pages that have something to run, marked with what they start."""
    found = []
    for path in PAGES:
        code = program(path.read_text(encoding="utf-8"))
        if code.strip():
            marks = [
                getattr(pytest.mark, framework)
                for framework in ("dask", "parsl")
                if f"proxystore_{framework}" in code
            ]
            found.append(pytest.param(path, marks=marks, id=str(path.relative_to(ROOT))))
    return found


@pytest.mark.parametrize("path", cases())
def test_python_blocks_run(path: Path, tmp_path: Path) -> None:
    # A file, and not exec(): worker processes import the main module from where it lies.
    script = tmp_path / "page.py"
    script.write_text(program(path.read_text(encoding="utf-8")), encoding="utf-8")
    # Parsl starts its helper programs by name.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PATH": search},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_blocks_are_found_where_they_stand() -> None:
    page = """\
# Title

```python
a = 1
```

```bash
rm -rf /
```

=== "Tab"

    ```python
    b = 2

    if b:
        c = 3
    ```

<!-- not run: needs a cluster -->
```python
raise SystemExit("not this one")
```
"""
    lines = program(page).splitlines()
    assert lines[3] == "a = 1"
    assert lines[13:17] == ["b = 2", "", "if b:", "    c = 3"]
    assert [line for line in lines if line] == ["a = 1", "b = 2", "if b:", "    c = 3"]


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text(encoding="utf-8")
    records = {path.name for path in folder.glob("[0-9]*.md")}
    assert records == set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index))


def test_each_row_of_what_goes_wrong_elsewhere_names_tests_that_exist():
    page = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^(\d+)\. ", page.partition("## Row by row")[2], flags=re.MULTILINE)
    rows = list(zip(map(int, parts[::2]), parts[1::2], strict=True))
    assert [number for number, _ in rows] == list(range(1, 61))
    missing = []
    for number, row in rows:
        named = re.findall(r"`(\w+/\w+\.py)::(\w+)`", row)
        assert named, f"row {number} names no test"
        for path, name in named:
            file = ROOT / "tests" / path
            if not file.exists() or f"def {name}(" not in file.read_text(encoding="utf-8"):
                missing.append(f"row {number}: {path}::{name}")
    assert not missing
