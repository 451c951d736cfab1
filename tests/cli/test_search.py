"""`penstock search`: a table for people, JSON for programs."""

from __future__ import annotations

import json
import subprocess
import sys


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_table_says_what_there_is_and_what_to_do_next(hub):
    hub.add_dataset(
        "roneneldan/TinyStories", {}, tags=("modality:text",), downloads=123456, description="Short stories"
    )
    hub.add_dataset("org/other-stories", {}, downloads=3)
    done = penstock("search", "stories", "--modality", "text")
    assert (done.returncode, done.stderr) == (0, "")
    assert "roneneldan/TinyStories" in done.stdout
    assert "123,456" in done.stdout
    assert "other-stories" not in done.stdout
    assert "train on text: yes" in done.stdout
    assert "penstock download hf://roneneldan/TinyStories" in done.stdout


def test_json_is_for_programs(hub):
    hub.add_dataset("org/a", {}, downloads=1)
    hub.add_dataset("org/b", {}, downloads=2)
    done = penstock("search", "--limit", 1, "--json")
    assert [one["name"] for one in json.loads(done.stdout)] == ["org/b"]


def test_nothing_found_and_nothing_known_are_said(hub):
    done = penstock("search", "nothing")
    assert (done.returncode, done.stdout) == (0, "no public dataset has 'nothing' in its name\n")
    done = penstock("search", "x", "--modality", "smell")
    assert done.returncode == 2
    assert "modality must be one of" in done.stderr
