"""`penstock inspect` and `penstock verify` know what a StreamingDataset takes and what it keeps."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile

import pytest

from penstock import StreamingDataset


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def inspected(place):
    done = penstock("inspect", place, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture
def places(web):
    """A folder of samples, one of an archive of the same, and a table, behind a web server."""
    for name in ("pics", "tars"):
        (web.folder / name).mkdir()
    with tarfile.open(web.folder / "tars" / "x.tar", "w") as archive:
        for number in range(3):
            for name in (f"{number}.jpg", f"{number}.txt"):
                data = name.encode() * 50
                (web.folder / "pics" / name).write_bytes(data)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    (web.folder / "i.csv").write_text("index,file\n" + "".join(f"{n},pics/{n}.jpg\n" for n in range(3)))
    return web


def test_folders_and_archives_of_samples_are_inspected(places):
    facts = inspected(places.folder / "pics")
    assert (facts["kind"], facts["rows"], facts["first_rows"][0]["jpg"]) == ("folder of samples", 3, "0.jpg")
    for place in (places.folder / "tars", places.folder / "tars" / "x.tar", f"{places.url}/tars/x.tar"):
        facts = inspected(place)
        assert (facts["kind"], facts["path"], facts["rows"]) == ("tar archives of samples", str(place), 3)
        assert {"index", "jpg", "jpg__offset", "txt"} <= facts["fields"].keys()


def test_a_table_at_a_url_is_inspected(places):
    facts = inspected(f"{places.url}/i.csv")
    assert (facts["kind"], facts["rows"], list(facts["fields"])) == ("table", 3, ["index", "file"])
    done = penstock("inspect", f"{places.url}/none.csv")
    assert (done.returncode, f"{places.url}/none.csv" in done.stderr) == (2, True)


def test_what_a_dataset_keeps_is_inspected(places, tmp_path):
    with StreamingDataset(f"{places.url}/i.csv", tmp_path / "dst", columns_to_download=["file"]) as dataset:
        assert len(list(dataset)) == 3
    facts = inspected(tmp_path / "dst")
    assert facts["kind"].startswith("what StreamingDatasets keep")
    assert (list(facts["indexes"].values()), facts["cache"], facts["failures"]) == (
        ["3 rows"],
        {"files": 3, "bytes": 750},
        0,
    )


def test_folders_and_archives_of_samples_are_verified(places):
    for name in ("pics", "tars"):
        done = penstock("verify", places.folder / name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"{name}: 3 samples, 6 files: all as they should\n")
