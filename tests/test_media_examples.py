"""The examples of videos, sounds, latents and mixtures run as they are, on data they make, and learn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# One thread each, so that sums are added up in one order and losses can be compared to the last digit.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clips_find_their_captions(tmp_path):
    printed = run("video_captions.py", tmp_path / "clips", f"--out={tmp_path / 'run'}", "--make=48", "--steps=24")
    found = re.search(r"([\d.]+)% of the last clips found their caption", printed)
    assert found is not None
    assert float(found[1]) > 60, "by chance it would be 25"


def test_sounds_are_told_apart_and_a_broken_one_is_left_out(tmp_path):
    for kind in ("tone", "chirp", "noise"):
        (tmp_path / "sounds" / kind).mkdir(parents=True)
        (tmp_path / "sounds" / kind / "cut.wav").write_bytes(b"RIFF\xff\x00\x00\x00WAVEfmt ")
    arguments = [tmp_path / "sounds", f"--out={tmp_path / 'run'}", "--make=90", "--steps=40"]
    found = re.search(r"([\d.]+)% of \d+ sounds right, (\{.*\}) left out", run("audio_classification.py", *arguments))
    assert found is not None
    assert float(found[1]) > 70, "by chance it would be 33"
    assert re.fullmatch(r"\{'[a-z-]+': \d+\}", found[2]), "counted by what is wrong, and not by the error's type"


@pytest.mark.slow
def test_a_mixture_goes_on_where_it_stopped(tmp_path):
    lines = re.compile(r"step (\d+) loss ([\d.]+) (\w+)")
    whole = lines.findall(run("text_image_mix.py", f"--out={tmp_path / 'whole'}", "--steps=24"))
    assert [int(step) for step, _, _ in whole] == list(range(1, 25))
    kinds = [kind for _, _, kind in whole]
    assert [kinds[at : at + 4].count("text") for at in range(0, 24, 4)] == [3] * 6
    first = lines.findall(run("text_image_mix.py", f"--out={tmp_path / 'cut'}", "--steps=10"))
    assert first + lines.findall(run("text_image_mix.py", f"--out={tmp_path / 'cut'}", "--steps=24")) == whole


@pytest.mark.slow
def test_latents_are_made_from_noise_and_a_caption(tmp_path):
    printed = run("latents.py", tmp_path / "latents", f"--out={tmp_path / 'run'}", "--make=128", "--steps=150")
    before, after = map(float, re.search(r"meant: ([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after < 0.7 * before
