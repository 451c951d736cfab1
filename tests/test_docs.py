"""Every page of the documentation is a story that runs, from top to bottom.

On a page, each ```python block is executed, in order, in one namespace and one empty folder; a block
with a title ("train.py") is written to that file and run as a script. Lines of ```bash blocks that call
`penstock` are run too. A ```text block right after any of these is what it must print.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from servers.hub_process import Hub

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r'^```(?P<kind>python|bash)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```\n'
    r"(?:\s*^```text\n(?P<prints>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")
LIMIT_S = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One piece of code on a page."""

    kind: str
    title: str | None
    code: str
    prints: str | None
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(**match.groupdict(), line=text.count("\n", 0, match.start()) + 2)
        for match in BLOCK.finditer(text)
        if match["kind"] == "python" or commands_of(match["code"])
    ]


def commands_of(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("penstock ")]


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


def printed_by(block: Block, page: Path, names: dict[str, object]) -> str:
    if block.kind == "bash":
        return "".join(run("-m", *command) for command in commands_of(block.code))
    if block.title is not None:
        Path(block.title).write_text(block.code, encoding="utf-8")
        return run(block.title)
    # Padded with empty lines, so that a traceback points at the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def stock(hub: Hub) -> None:
    """Give the Hub of a page the dataset that pages speak of: its names, and a few rows of its kind."""
    files = {}
    for name, count in (
        ("train-00000-of-00001-2d5a1467fff1081b", 200),
        ("validation-00000-of-00001-869c898b519ad725", 20),
    ):
        file = io.BytesIO()
        pq.write_table(pa.table({"text": [f"Once upon a time there was a {n}." for n in range(count)]}), file)
        files[f"data/{name}.parquet"] = file.getvalue()
    hub.add_dataset("roneneldan/TinyStories", files, tags=("modality:text",), downloads=50_000)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_page_runs(page, tmp_path, monkeypatch, request):
    if "hf://" in page.read_text(encoding="utf-8"):
        stock(request.getfixturevalue("hub"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks_of(page):
        printed = printed_by(block, page, names)
        if block.prints is not None:
            assert printed.strip().splitlines() == block.prints.strip().splitlines(), f"{page}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    missing = [target for target in LINK.findall(text) if not (page.parent / target).exists()]
    assert missing == []
