"""Importing penstock is silent and light, and every public name is really there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import penstock

# Watches an import from inside: what it loads, reads from the environment, prints, and sets going.
PROBE = """
import json, os, sys, threading

class WatchedEnvironment(dict):
    def __getitem__(self, name):
        reads.append(name)
        return super().__getitem__(name)
    def get(self, name, default=None):
        reads.append(name)
        return super().get(name, default)
    def __contains__(self, name):
        reads.append(name)
        return super().__contains__(name)
    def __iter__(self):
        reads.append("all of it")
        return super().__iter__()

def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.putenv", "signal.")):
        events.append(event)
    if event.startswith("_thread.start"):
        events.append(event)
    if event == "open" and arguments[1] is not None and arguments[1].strip("rbtU"):
        events.append(f"open {arguments[0]} to write")

reads, events = [], []
os.environ = WatchedEnvironment(os.environ)
sys.addaudithook(watch)
before = set(sys.modules)
import penstock
new = sorted(set(sys.modules) - before)
print(json.dumps({"modules": new, "reads": reads, "events": events, "threads": threading.active_count()}))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that writes no bytecode, so that an import has no reason to write anything."""
    command = [sys.executable, "-B", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def fresh_import() -> dict:
    """What `import penstock` did to a fresh interpreter."""
    done = python("-c", PROBE)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 1, "importing penstock printed something"
    return json.loads(lines[0])


def test_import_loads_the_standard_library_and_nothing_else(fresh_import):
    tops = {module.partition(".")[0] for module in fresh_import["modules"]}
    assert "penstock" in tops
    assert tops - {"penstock"} <= set(sys.stdlib_module_names)


def test_import_loads_no_module_of_penstock_but_itself(fresh_import):
    assert [module for module in fresh_import["modules"] if module.startswith("penstock.")] == []


def test_import_reads_no_environment(fresh_import):
    assert fresh_import["reads"] == []


def test_import_starts_and_writes_nothing(fresh_import):
    assert fresh_import["events"] == []
    assert fresh_import["threads"] == 1


def test_import_costs_a_handful_of_modules(fresh_import):
    assert len(fresh_import["modules"]) <= 10, fresh_import["modules"]


def test_the_command_line_explains_itself_without_torch():
    done = python("-X", "importtime", "-m", "penstock", "--help")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "penstock.cli.main" in loaded
    heavy = {"torch", "pyarrow", "gigatoken", "awkward", "tokenizers", "tiktoken", "sentencepiece", "matplotlib"}
    assert loaded & heavy == set()
    assert "tokenize" in done.stdout
    assert "demo" in done.stdout


@pytest.mark.parametrize("name", penstock.__all__)
def test_every_public_name_resolves(name):
    assert getattr(penstock, name) is not None
    assert name in dir(penstock)


def test_a_star_import_brings_exactly_the_public_names():
    brought: dict[str, object] = {}
    exec("from penstock import *", brought)
    assert set(brought) - {"__builtins__"} == set(penstock.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'resevoir'"):
        _ = penstock.resevoir
