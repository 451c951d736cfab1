"""A corpus that is on every machine with Python: its own documentation.

The language reference's topics (`help("with")` prints them) and the docstrings of the standard library,
one document for each topic and each module: about two megabytes of English with code in it. Sources are
parsed, never imported, so nothing in them runs.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import orjson

from penstock.errors import ObjectMissing
from penstock.formats.files import atomic_write
from penstock.progress import Meter

TOPICS = "pydoc_data/topics.py"
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
_MIN_CHARACTERS = 40


def write_python_corpus(path: Path) -> int:
    """Write Python's documentation as JSON lines {"text", "source"}, in an order that is always the same.

    Returns:
        How many documents there are.

    Raises:
        ObjectMissing: this Python has no standard library in source, or one without docstrings.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = [file for file in sorted(library.rglob("*.py")) if _is_library(file.relative_to(library))]
    count = 0
    with atomic_write(path) as out, Meter("reading", total=len(modules), unit="modules") as meter:
        for source, text in _documents(library, modules, meter):
            out.write(orjson.dumps({"text": text, "source": source}, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
        if count == 0:
            raise ObjectMissing(f"{library} holds no documentation in source: give a corpus of your own with --corpus")
    return count


def _is_library(relative: Path) -> bool:
    return not (_NOT_LIBRARY & set(relative.parts) or any(part.startswith("test_") for part in relative.parts))


def _documents(library: Path, modules: list[Path], meter: Meter) -> Iterator[tuple[str, str]]:
    for topic, text in _topics(library / TOPICS):
        yield f"topic {topic}", text
    for file in modules:
        meter.add(1)
        text = "\n\n".join(_docstrings(file))
        if len(text) >= _MIN_CHARACTERS:
            yield file.relative_to(library).as_posix(), text


def _topics(file: Path) -> Iterator[tuple[str, str]]:
    """Read the literal dict of topics out of its source; nothing on systems that leave it out."""
    if not file.is_file():
        return
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from sorted(ast.literal_eval(node.value).items())


def _docstrings(file: Path) -> Iterator[str]:
    """Give the docstrings of a module, its classes and functions, from the top down."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        # Some files of the library are there to be wrong: bad syntax, other encodings.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            # A lone surrogate is legal in a Python string and is no text.
            if text and not any("\ud800" <= char <= "\udfff" for char in text):
                yield inspect.cleandoc(text)
