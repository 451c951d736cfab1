"""Every file of an archive is where its headers say, or the archive is refused by name."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from penstock.errors import BadBlock, ConfigError, FormatError, ObjectMissing
from penstock.index.build import build_index
from penstock.index.tar_members import iter_members

LONG = "/".join(f"a rather long folder with the number {number:03}" for number in range(12))


def add(archive, name, data=b"", **settings):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in settings.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def tar(path, files, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            add(archive, name, data)
    return path


def members(path):
    with open(path, "rb", buffering=0) as file:
        return list(iter_members(file, Path(path).stat().st_size, str(path)))


def contents(path):
    data = Path(path).read_bytes()
    return {name: data[offset : offset + length] for name, offset, length in members(path)}


def built(src, tmp_path, **options):
    return build_index(src, folder=tmp_path / "node", **options)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_whatever_their_names_and_lengths(tmp_path, format):
    files = {
        "plain.txt": b"x",
        "a/empty.txt": b"",
        "exact.bin": b"y" * 512,
        "more.bin": b"z" * 513,
        "ü/日 本.txt": b"u",
    }
    if format != tarfile.USTAR_FORMAT:
        files |= {f"{LONG}/0.txt": b"long", f"{'n' * 101}.jpg": b"n", f"{'ü' * 90}.txt": b"u"}
    assert contents(tar(tmp_path / "x.tar", files, format)) == files


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("format", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_archives_of_the_tar_command_are_read(tmp_path, format):
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    files = {"./sub/a.txt": b"a", "./sub/b c.jpg": bytes(70_000), "./x.txt": b""}
    if format in ("gnu", "pax", "oldgnu"):
        files[f"./sub/{'long' * 50}.txt"] = b"long"
    for name, content in files.items():
        (data / name).write_bytes(content)
    subprocess.run(["tar", f"--format={format}", "-cf", tmp_path / "x.tar", "-C", data, "."], check=True)
    assert contents(tmp_path / "x.tar") == files
    keys = built(tmp_path / "x.tar", tmp_path).keys.to_pylist()
    assert sorted(keys) == sorted(name.removeprefix("./").partition(".")[0] for name in files)


def test_what_is_no_file_is_passed_over_and_hard_links_are_what_they_link_to(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "a", type=tarfile.DIRTYPE)
        add(archive, "a/pipe.txt", type=tarfile.FIFOTYPE)
        add(archive, "a/1.txt", b"one")
        add(archive, "a/2.txt", type=tarfile.LNKTYPE, linkname="a/1.txt")
    assert contents(tmp_path / "x.tar") == {"a/1.txt": b"one", "a/2.txt": b"one"}


def test_sizes_beyond_eight_gigabytes_and_those_in_extended_headers_are_understood(tmp_path):
    path, size = tmp_path / "x.tar", 9 << 30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with path.open("wb") as file:
            for name, length in (("big.bin", size), ("after.txt", 5)):
                member = tarfile.TarInfo(name)
                member.size = length
                file.write(member.tobuf(format))
                file.seek(-(-length // 512) * 512, io.SEEK_CUR)
            file.write(bytes(1024))
        found = members(path)
        assert [(name, length) for name, _, length in found] == [("big.bin", size), ("after.txt", 5)]
        assert found[1].offset > size


def test_archives_written_one_behind_the_other_are_all_read(tmp_path):
    first, second = tar(tmp_path / "1.tar", {"1.txt": b"1"}), tar(tmp_path / "2.tar", {"2.txt": b"2"})
    (tmp_path / "x.tar").write_bytes(first.read_bytes() + second.read_bytes())
    assert contents(tmp_path / "x.tar") == {"1.txt": b"1", "2.txt": b"2"}


def test_a_truncated_archive_is_refused_wherever_it_was_cut(tmp_path):
    whole = tar(tmp_path / "x.tar", {f"{number}.txt": b"content" * 100 for number in range(5)}, tarfile.GNU_FORMAT)
    data = whole.read_bytes()
    end = 5 * (512 + 1024)
    assert data[end:].count(0) == len(data) - end
    for cut in [*range(1, end + 1, 97), 512, 1536, end]:
        whole.write_bytes(data[:cut])
        with pytest.raises(BadBlock, match=r"x\.tar (is truncated|ends at byte .* it was truncated)"):
            members(whole)
    whole.write_bytes(b"")
    with pytest.raises(BadBlock, match=r"x\.tar ends at byte 0"):
        members(whole)


def test_a_damaged_archive_and_one_that_is_none_are_refused(tmp_path):
    path = tar(tmp_path / "x.tar", {"1.txt": b"1", "2.txt": b"2"}, tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadBlock, match=r"x\.tar has no header of a member at byte 1,024 .*damaged, or no tar"):
        members(path)
    path.write_bytes(b"no tar at all " * 100)
    with pytest.raises(BadBlock, match="at byte 0"):
        members(path)


def test_compressed_archives_are_refused_by_name_and_by_content(tmp_path):
    inner = tar(tmp_path / "x.tar", {"1.txt": b"1"}).read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(inner))
    with pytest.raises(ConfigError, match=r"x\.tar\.gz is a compressed tar.*uncompress it"):
        built(tmp_path / "x.tar.gz", tmp_path)
    (tmp_path / "x.tar").write_bytes(gzip.compress(inner + bytes(4096)))
    with pytest.raises(BadBlock, match=r"x\.tar is compressed with gzip"):
        built(tmp_path / "x.tar", tmp_path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_members_and_symbolic_links_are_refused(tmp_path, format):
    with (tmp_path / "holes.bin").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    command = ["tar", f"--format={format}", "--sparse", "-cf", "x.tar", "holes.bin"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(BadBlock, match=r"x\.tar holds 'holes\.bin' as a sparse file"):
        members(tmp_path / "x.tar")
    (tmp_path / "link.bin").symlink_to("holes.bin")
    subprocess.run(["tar", "-cf", "x.tar", "link.bin"], cwd=tmp_path, check=True)
    with pytest.raises(BadBlock, match=r"x\.tar has the symbolic link 'link\.bin'.*tar -h"):
        members(tmp_path / "x.tar")


def test_samples_have_the_keys_and_extensions_of_their_members(tmp_path):
    files = {"b/1.jpg": b"j", "b/1.meta.json": b"{}", "README": b"", ".hid.txt": b"", "a/2.jpg": b"jj", "../3.jpg": b""}
    index = built(tar(tmp_path / "x.tar", files), tmp_path)
    assert index.base == str(tmp_path)
    assert index.columns == [
        *("index", "jpg", "jpg__offset", "jpg__length"),
        *("meta.json", "meta.json__offset", "meta.json__length"),
    ]
    rows = {row["index"]: row for row in index.rows(range(len(index)))}
    assert list(rows) == ["b/1", "a/2", "../3"]
    assert (rows["a/2"]["jpg"], rows["a/2"]["jpg__length"], rows["a/2"]["meta.json"]) == ("x.tar", 2, None)
    assert rows["../3"]["jpg"] == "x.tar"


def test_a_name_with_a_nul_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "1.txt", pax_headers={"path": "no\0path.txt"})
    with pytest.raises(FormatError, match=r"'no\\x00path\.txt' in .*x\.tar has a NUL in its name"):
        built(tmp_path / "x.tar", tmp_path)


def test_a_sample_that_is_there_twice_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for data in (b"first", b"second"):
            add(archive, "1.jpg", data)
    with pytest.raises(FormatError, match=r"'1' of .*x\.tar has 2 files of extension 'jpg': x\.tar at byte 512, x"):
        built(tmp_path / "x.tar", tmp_path)


@pytest.mark.parametrize("place", ["remote", "local"])
def test_archives_that_have_keys_in_common_come_before_their_keys(web, tmp_path, place):
    (web.folder / "two" / "b c").mkdir(parents=True)
    tar(web.folder / "two" / "a.tar", {"0.jpg": b"one", "1.jpg": b"two", "x/2.jpg": b"three"})
    tar(web.folder / "two" / "b c" / "a.tar", {"1.jpg": b"four", "7.jpg": b"five"})
    places = [f"{web.url}/two/a.tar", f"{web.url}/two/b%20c/a.tar"] if place == "remote" else web.folder / "two"
    index = built(places, tmp_path)
    assert index.keys.to_pylist() == ["a/0", "a/1", "a/x/2", "b c/a/1", "b c/a/7"]
    assert [row["jpg__length"] for row in index.rows(range(5))] == [3, 3, 5, 4, 4]
    assert built(web.folder / "two" / "a.tar", tmp_path).keys.to_pylist() == ["0", "1", "x/2"]
    tar(web.folder / "two" / "b c" / "a.tar", {"3.jpg": b"four", "7.jpg": b"five"})
    assert built(places, tmp_path).keys.to_pylist() == ["0", "1", "x/2", "3", "7"]


def test_an_archive_without_samples_is_refused(tmp_path):
    with pytest.raises(ObjectMissing, match=r"hold no files named KEY\.EXTENSION"):
        built(tar(tmp_path / "x.tar", {"README": b""}), tmp_path)


def test_a_remote_archive_is_indexed_without_reading_its_large_members(web, tmp_path):
    files = {f"{number}.bin": bytes([number]) * (6 << 20) for number in range(5)}
    files |= {f"{number}.txt": b"small" for number in range(5)}
    web.add_files({"x.tar": tar(tmp_path / "x.tar", files).read_bytes()})
    index = built(f"{web.url}/x.tar", tmp_path)
    row = index.rows([3])[0]
    assert row["bin__length"] == 6 << 20
    assert web.bytes_sent("x.tar") < (1 << 20)
    assert len(web.requests("x.tar")) < 12
    web.forget()
    assert built(f"{web.url}/x.tar", tmp_path).rows([3]) == [row]
    assert web.bytes_sent("x.tar") == 0


def test_a_remote_archive_of_small_members_is_read_in_few_requests(web, tmp_path):
    files = {f"{number}.jpg": b"x" * 20_000 for number in range(1000)}
    web.add_files({"x.tar": tar(tmp_path / "x.tar", files).read_bytes()})
    assert len(built(f"{web.url}/x.tar", tmp_path)) == 1000
    assert len(web.requests("x.tar")) < 20


def test_an_archive_that_breaks_off_on_its_way_is_an_error_that_names_it(web, tmp_path):
    good = tar(tmp_path / "good.tar", {"1.jpg": bytes(50_000)}).read_bytes()
    cut = tar(tmp_path / "x.tar", {"2.jpg": bytes(50_000), "3.jpg": bytes(50_000)}).read_bytes()[:60_000]
    web.add_files({"good.tar": good, "x.tar": cut})
    with pytest.raises(BadBlock, match=r"x\.tar is truncated"):
        built(f"{web.url}/{{good,x}}.tar", tmp_path)
