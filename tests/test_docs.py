"""Every Python block of the README and the documentation runs.

The blocks of a page are one program, run in order in a fresh directory. A block is left
out when the line before it is a comment ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


def run(path: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in a directory of its own."""
    # A file, and not exec(): worker processes import the main module from where it lies.
    script = directory / "page.py"
    script.write_text(program(path.read_text(encoding="utf-8")), encoding="utf-8")
    # Parsl starts its helper programs by name.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=directory,
        env={**os.environ, "PATH": search},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


Runs = dict[Path, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """The runs of all pages whose tests were selected, three at a time.

    Pages with clusters wait more than they work: for processes to start, and to end.
    """
    name = test_python_blocks_run.__name__
    items: list[Any] = [item for item in request.session.items if item.name.startswith(name)]
    with ThreadPoolExecutor(3) as pool:
        yield {
            path: pool.submit(run, path, tmp_path_factory.mktemp("page"))
            for path in (item.callspec.params["path"] for item in items)
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(300)  # it may have to wait for others
@pytest.mark.parametrize("path", cases())
def test_python_blocks_run(path: Path, runs: Runs) -> None:
    done = runs[path].result()
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


LINK = re.compile(r"\]\((?!mailto:)([^)\s]+)\)")
# What mkdocs does not check: it sees the pages in docs/ alone.
OUTSIDE = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page can be called in a link."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_links_between_files_lead_somewhere() -> None:
    wrong = []
    for source in OUTSIDE:
        for link in LINK.findall(source.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = (source.parent / name).resolve() if name else source
            if "://" in link:
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append(f"{source.relative_to(ROOT)}: {link}")
    assert not wrong


def test_links_to_elsewhere_have_the_form_of_one() -> None:
    """Whether there is something, nobody can say without a network."""
    links = {
        link
        for source in [*PAGES, *OUTSIDE]
        for link in LINK.findall(source.read_text(encoding="utf-8"))
        if "://" in link
    }
    assert links
    wrong = [
        link for link in links if not re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s<>]*)?", link)
    ]
    assert not wrong


def test_the_page_of_examples_names_each_one_and_how_long_notebooks_take() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    named = {row[0].strip("`"): row for row in rows}
    notebooks = {path.stem: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    examples = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert set(named) == {*notebooks, *examples}
    for name, path in notebooks.items():
        (first, *_) = json.loads(path.read_text(encoding="utf-8"))["cells"]
        says = re.search(r"about\s(\d+\s(?:second|minute)s)", "".join(first["source"]))
        assert says, name
        assert named[name][-1] == " ".join(says[1].split()), name
