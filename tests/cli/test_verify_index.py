"""`penstock verify` of an index: every file that it names is asked for."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def samples(folder):
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(f"text {number}")
    return folder


def test_a_saved_index_is_compared_with_its_folder(tmp_path):
    folder = samples(tmp_path / "data")
    assert penstock("index", folder, tmp_path / "x.arrow").returncode == 0
    done = penstock("verify", tmp_path / "x.arrow")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("x.arrow: 5 samples, 5 files: all as they should\n")
    (folder / "3.txt").unlink()
    done = penstock("verify", tmp_path / "x.arrow")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("BAD  '3', txt: ")
    assert done.stdout.endswith("5 samples, 5 files: 1 missing\n")


def test_a_table_is_compared_with_the_files_it_names(tmp_path):
    folder = samples(tmp_path / "data")
    lines = [f"{n},data/{n}.txt,{hashlib.md5((folder / f'{n}.txt').read_bytes()).hexdigest()}" for n in range(5)]
    (tmp_path / "x.csv").write_text("id,file,file__md5\n" + "\n".join(lines) + "\n")
    (folder / "2.txt").write_text("changed")
    done = penstock("verify", tmp_path / "x.csv", "--key", "id", "--columns", "file", "--contents", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"], said["counts"], said["digests"]) == (1, False, {"digest": 1}, 5)
    assert (said["problems"][0]["key"], said["problems"][0]["column"]) == ("2", "file")


def test_what_names_no_files_is_said(tmp_path):
    (tmp_path / "x.csv").write_text("index,caption\n1,a\n")
    done = penstock("verify", tmp_path / "x.csv")
    assert done.returncode == 2
    assert "give them as columns (--columns); it has 'index', 'caption'" in done.stderr
    done = penstock("verify", tmp_path, "--contents")
    assert (done.returncode, "--contents is for an index" in done.stderr) == (2, True)


def test_an_index_at_a_url_does_not_choose_what_is_read_here(web, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    web.add_files({"x.csv": f"index,file\na,{tmp_path}/secret.txt\nb,file://{tmp_path}/none.txt\n".encode()})
    asked = ["verify", f"{web.url}/x.csv", "--columns", "file", "--contents"]
    done = penstock(*asked)
    assert done.returncode == 1
    assert "2 files, 0 bytes read" in done.stdout
    assert done.stdout.endswith(": 2 location\n"), "whether a file is there is not told"
    assert "if that is meant, give --allow-local-paths" in done.stdout
    done = penstock(*asked, "--allow-local-paths")
    assert "2 files, 6 bytes read" in done.stdout
    assert done.stdout.endswith(": 1 missing\n")
