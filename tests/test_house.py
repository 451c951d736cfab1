"""What every file of the repository keeps to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAX_LINES = 400
# Module names of distributions that are not called like their module.
MODULES = {
    "google-cloud-bigquery": "google.cloud.bigquery",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
}
# Extras declared ahead of the code that will use them.
AHEAD = {"hf", "ray", "bigquery"}

# Put together from pieces, so that this file passes its own test.
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:" + "|".join(("work", "root", "home", "opt", "Users", "mnt")) + r")/\w")
REGISTRY = re.compile(
    r"\b(?:" + "|".join(("pypi" + r"\.", "pythonhosted" + r"\.", "index" + "-url", "download" + r"\.pytorch")) + ")"
)


def tracked_files() -> list[Path]:
    """Every file that is, or is about to be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of what belongs to it")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def lines_of_text(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []


@pytest.mark.parametrize(("what", "pattern"), [("machine path", MACHINE_PATH), ("package registry", REGISTRY)])
def test_no_file_knows_the_machine_it_was_written_on(what, pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what} in {line.strip()!r}"
        for path in tracked_files()
        for number, line in enumerate(lines_of_text(path), start=1)
        if pattern.search(line)
    ]
    assert found == []


def test_the_patterns_find_what_they_are_for():
    assert MACHINE_PATH.search("read /" + "home/me/data.bin")
    assert REGISTRY.search("--extra-" + "index" + "-url")
    assert not MACHINE_PATH.search("s3://bucket/" + "home/data.bin")


def test_water_flows_one_way():
    """The contracts of [tool.importlinter]: layers, no torch below, a plan that touches nothing."""
    pytest.importorskip("importlinter")
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, wherever in it, each with all its parents."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            found.update(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return found


IMPORTS = {path: imported_modules(path) for path in SOURCES}


def optional_packages() -> list[tuple[str, str]]:
    extras = PROJECT["project"]["optional-dependencies"]
    return [(extra, re.split(r"[\[<>=~! ]", need)[0]) for extra, needs in extras.items() for need in needs]


@pytest.mark.parametrize(("extra", "package"), optional_packages())
def test_an_optional_package_is_imported_by_one_file(extra, package):
    """The file boundary is the extra: what is not installed takes one file away, no more."""
    module = MODULES.get(package, package)
    importers = [str(path.relative_to(ROOT)) for path, modules in IMPORTS.items() if module in modules]
    assert len(importers) <= 1, importers
    assert importers or extra in AHEAD, f"extra [{extra}] installs {package}, and nothing imports it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_file_holds_one_noun(path):
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= MAX_LINES, f"{count} lines: a second noun has moved in"


def test_every_constraint_is_exact():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
