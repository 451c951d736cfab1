"""Token bins open in constant time, read bare files, and find every kind of damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadBlock, BadManifest, ConfigError, ObjectMissing
from penstock.formats import tokens
from penstock.formats.token_writer import TokenWriter
from penstock.formats.tokens import dtype_for, open_bin, verify_bin

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokens-v1"


def write(folder, *, vocab_size=50257, documents=((1, 2, 3), (), (4, 50256)), name="train"):
    path = folder / f"{name}.bin"
    with TokenWriter(path, vocab_size=vocab_size, job={}) as writer:
        lengths = [len(document) for document in documents]
        ids = np.array([i for document in documents for i in document], np.uint32)
        writer.append(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), {})
        n = len(documents)
        writer.finish({"counts": {"rows_in": n, "documents_out": n, "skipped": {}}})
    return path


@pytest.mark.parametrize(
    ("vocab_size", "name"), [(256, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (262_144, "uint32")]
)
def test_the_type_follows_the_vocabulary(tmp_path, vocab_size, name):
    path = write(tmp_path, vocab_size=vocab_size, documents=((vocab_size - 1, 0), (7,)))
    opened = open_bin(path)
    assert opened.dtype == dtype_for(vocab_size) == np.dtype(name)
    assert opened.tokens.tolist() == [vocab_size - 1, 0, 7]
    assert path.read_bytes() == np.array([vocab_size - 1, 0, 7], np.dtype(name).newbyteorder("<")).tobytes()
    assert opened.doc_ends.tolist() == [2, 3]
    assert not opened.tokens.flags.writeable
    verify_bin(path)


def test_a_bare_file_is_uint16_unless_told(tmp_path):
    path = tmp_path / "bare.bin"
    np.array([1, 2, 70_000], "<u4").tofile(path)
    assert open_bin(path).tokens.tolist() == [1, 0, 2, 0, 70_000 & 0xFFFF, 1]
    opened = open_bin(path, dtype="uint32")
    assert opened.tokens.tolist() == [1, 2, 70_000]
    assert (opened.meta, opened.doc_ends) == (None, None)
    with pytest.raises(BadManifest, match="no side-car"):
        verify_bin(path)
    with pytest.raises(ConfigError, match="dtype must be 'uint16' or 'uint32', got 'int32'"):
        open_bin(path, dtype="int32")


def test_a_json_file_of_someone_else_is_no_side_car(tmp_path):
    np.arange(3, dtype="<u2").tofile(tmp_path / "train.bin")
    (tmp_path / "train.json").write_text('[{"text": "a"}]')
    assert open_bin(tmp_path / "train.bin").meta is None


def test_an_empty_file_holds_no_tokens(tmp_path):
    (tmp_path / "a.bin").touch()
    assert len(open_bin(tmp_path / "a.bin")) == 0
    assert open_bin(tmp_path / "a.bin").fingerprint
    with pytest.raises(ObjectMissing, match=r"b.bin does not exist"):
        open_bin(tmp_path / "b.bin")


def test_a_folder_is_answered_with_the_bins_in_it(tmp_path):
    (tmp_path / "bins").mkdir()
    with pytest.raises(ConfigError, match=r"bins is a folder; give a .bin; it holds none, `penstock tokenize"):
        open_bin(tmp_path / "bins")
    for name in ("validation", "train"):
        write(tmp_path / "bins", name=name)
    with pytest.raises(ConfigError, match=r"bins is a folder; give \S*/bins/train.bin or \S*/bins/validation.bin$"):
        open_bin(tmp_path / "bins")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.md", "a.parquet", "a.txt.gz", "A.TXT"])
def test_text_is_not_taken_for_ids(tmp_path, name):
    (tmp_path / name).write_bytes(b"1234")
    with pytest.raises(ConfigError, match=rf"{name} is .*, tokenize .*it first: `penstock tokenize"):
        open_bin(tmp_path / name)
    assert len(open_bin(tmp_path / name, dtype="uint16")) == 2


def test_a_copy_has_the_same_fingerprint_and_other_tokens_another(tmp_path):
    path = write(tmp_path)
    (tmp_path / "copy").mkdir()
    copies = [shutil.copy(path.with_suffix(suffix), tmp_path / "copy") for suffix in (".bin", ".json", ".docs")]
    os.utime(copies[0], (1, 1))
    assert open_bin(copies[0]).fingerprint == open_bin(path).fingerprint
    assert pickle.loads(pickle.dumps(open_bin(path))).fingerprint == open_bin(path).fingerprint
    bare = open_bin(shutil.copy(path, tmp_path / "bare.bin")).fingerprint
    others = {
        open_bin(write(tmp_path, documents=((1, 2), (3, 4, 50256)), name="a")).fingerprint,
        open_bin(write(tmp_path, documents=((1, 2, 3), (), (4, 50255)), name="b")).fingerprint,
        open_bin(path).fingerprint,
        bare,
    }
    assert len(others) == 4


def truncate(path, count):
    os.truncate(path, path.stat().st_size - count)


def flip(path, at=0):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: truncate(p, 2), BadBlock, r"train.bin is truncated: 8 bytes, its side-car says 10"),
        (lambda p: p.write_bytes(p.read_bytes() + b"xy"), BadBlock, r"train.bin is too long"),
        (lambda p: truncate(p.with_suffix(".docs"), 8), BadBlock, r"train.docs is truncated"),
        (lambda p: flip(p.with_suffix(".docs"), 16), BadBlock, r"train.docs ends at token 4, train.bin has 5"),
        (lambda p: truncate(p.with_suffix(".json"), 30), BadManifest, r"train.json is not valid JSON"),
        (lambda p: p.with_suffix(".json").write_bytes(b""), BadManifest, r"train.json is not valid JSON"),
    ],
)
def test_opening_notices_what_sizes_tell(tmp_path, damage, error, message):
    path = write(tmp_path)
    damage(path)
    with pytest.raises(error, match=message):
        open_bin(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, this penstock reads 1"),
        ({"num_documents": 2}, "contradicts itself .num_documents"),
        ({"counts": {"rows_in": 9, "documents_out": 3, "skipped": {}}}, "contradicts itself .counts"),
        ({"dtype": "int8"}, "not a whole side-car"),
        ({"checksums": {"bin": [], "docs": ""}}, "contradicts itself .number of checksums"),
        ({"counts": None}, "not a whole side-car"),
    ],
)
def test_a_side_car_that_contradicts_itself_is_refused(tmp_path, change, message):
    path = write(tmp_path)
    side_car = path.with_suffix(".json")
    side_car.write_text(json.dumps({**json.loads(side_car.read_text()), **change}))
    with pytest.raises(BadManifest, match=message):
        open_bin(path)


def test_the_side_car_settles_the_type(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ConfigError, match="holds uint16 ids"):
        open_bin(path, dtype="uint32")


def test_verifying_names_the_first_segment_that_changed(tmp_path, monkeypatch):
    path = write(tmp_path, documents=[range(3000)])
    verify_bin(path)
    monkeypatch.setattr(tokens, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr("penstock.formats.token_writer.SEGMENT_BYTES", 1000)
    path = write(tmp_path, documents=[range(1000), range(2000)], name="parts")
    assert len(open_bin(path).meta["checksums"]["bin"]) == 6
    verify_bin(path)
    flip(path, 2500)
    open_bin(path)
    with pytest.raises(BadBlock, match="bytes 2000 and following"):
        verify_bin(path)


def test_verifying_notices_a_changed_or_missing_document_table(tmp_path):
    path = write(tmp_path)
    flip(path.with_suffix(".docs"))
    with pytest.raises(BadBlock, match=r"train.docs changed"):
        verify_bin(path)
    path.with_suffix(".docs").unlink()
    assert open_bin(path).doc_ends is None
    with pytest.raises(BadBlock, match=r"train.docs is missing"):
        verify_bin(path)


@pytest.mark.parametrize(("name", "dtype"), [("train", "uint16"), ("validation", "uint32")])
def test_files_written_by_the_first_version_read_forever(name, dtype):
    opened = open_bin(GOLDEN / f"{name}.bin")
    verify_bin(opened.path)
    expected = json.loads((GOLDEN / "expected.json").read_text())[name]
    assert opened.dtype.name == dtype
    assert opened.tokens.tolist() == expected["tokens"]
    assert opened.doc_ends.tolist() == expected["doc_ends"]
    assert opened.fingerprint == expected["fingerprint"]
