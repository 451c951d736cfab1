"""Every document of every kind of file, with its row number, or a reason why not."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadBlock, BadRecord, ConfigError
from penstock.formats.sources import find_files, source_file
from penstock.formats.streams import BLOCK_BYTES
from penstock.formats.text import iter_strings, iter_text

WORDS = ["alpha", "beta", "gamma", "delta", "épsilon", "漢字", "😀", "\\", '"', "<|endoftext|>"]


def documents(count, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(count)]


def read(source, **options):
    """All documents with their row numbers, and the rows skipped."""
    texts, rows, skipped = [], [], {}
    for batch in iter_text(find_files(source), **options):
        raw = batch.data.tobytes()
        texts += [raw[a:b].decode() for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]
        rows += batch.rows.tolist()
        for reason, lost in batch.skipped.items():
            skipped.setdefault(reason, []).extend(lost.tolist())
    return texts, rows, skipped


def compressed(raw, suffix):
    if suffix == ".zst":
        return pa.compress(raw, codec="zstd", asbytes=True)
    return gzip.compress(raw) if suffix == ".gz" else raw


def json_lines(texts):
    return "".join(json.dumps({"n": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block_bytes", [100, 4096, BLOCK_BYTES])
def test_json_lines_come_back_in_order_whatever_the_blocks_and_the_compression(tmp_path, suffix, block_bytes):
    texts = documents(300)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compressed(json_lines(texts), suffix))
    assert read(path, block_bytes=block_bytes) == (texts, list(range(300)), {})


def make(folder, kind, texts):
    """The same texts as a file of another kind; .txt holds one a line or paragraph."""
    path = folder / f"a.{kind}"
    if kind.startswith("jsonl"):
        path.write_bytes(compressed(json_lines(texts), path.suffix))
    elif kind == "json":
        path.write_text(json.dumps([{"text": text} for text in texts], indent=1))
    elif kind == "parquet":
        pq.write_table(pa.table({"n": list(range(len(texts))), "text": texts}), path, row_group_size=37)
    else:
        path.write_text("\n\n".join(texts) + "\n")
    return path


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "txt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["line", "paragraph"])
def test_reading_from_any_batch_on_gives_exactly_the_rest(tmp_path, kind, mode):
    texts = documents(150)
    (tmp_path / "more").mkdir()
    files = [source_file(make(tmp_path, kind, texts)), source_file(make(tmp_path / "more", "parquet", texts[:50]))]
    options = {"documents": mode, "block_bytes": 600}
    batches = list(iter_text(files, **options))
    assert len(batches) > 2
    assert batches[-1].after.row == 200
    for at, batch in enumerate(batches):
        rest = list(iter_text(files, start=batch.after, **options))
        assert [b.data.tobytes() for b in rest] == [b.data.tobytes() for b in batches[at + 1 :]]
        assert [b.rows.tolist() for b in rest] == [b.rows.tolist() for b in batches[at + 1 :]]
        assert [b.after for b in rest] == [b.after for b in batches[at + 1 :]]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab é\t\r\n\n\n\f"), max_size=60), st.sampled_from([3, 16, 1000]))
def test_lines_and_paragraphs_are_what_a_plain_loop_finds(tmp_path_factory, content, block_bytes):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content.encode())
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    last = len(lines) - 1
    if last >= 0 and not content.endswith("\n"):
        lines[last] = content.split("\n")[-1].removesuffix("\r")

    def blank(line):
        return not line.strip("".join(map(chr, range(33))))

    assert read(path, documents="line", block_bytes=block_bytes)[0] == [line for line in lines if not blank(line)]
    paragraphs, current = [], []
    for raw, line in zip([*content.split("\n"), ""], [*lines, ""], strict=True):
        if blank(line):
            if current:
                paragraphs.append("\n".join(current).removesuffix("\r"))
            current = []
        else:
            current.append(raw)
    assert read(path, documents="paragraph", block_bytes=block_bytes)[0] == paragraphs


def test_a_text_file_is_one_document_to_the_last_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\r\n first\n\nsecond \n")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfmarked")
    assert read(tmp_path) == (["\r\n first\n\nsecond \n", "marked"], [0, 2], {"empty": [1]})


def test_a_record_longer_than_a_block_is_read_whole(tmp_path):
    texts = ["short", "x" * 100_000, "after", "y" * 5000]
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(texts))
    assert read(path, block_bytes=64)[0] == texts


def test_the_mark_before_utf8_is_no_part_of_a_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json_lines(["one", "two"]))
    assert read(path, block_bytes=30)[0] == ["one", "two"]


def test_a_json_file_may_hold_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\n " + json_lines(["one", "two"]))
    assert read(path)[0] == ["one", "two"]


BAD = [
    b'{"text": "zero"}',
    b"",
    b'{"text": "cut',
    b'{"body": "one"}',
    b'{"text": null}',
    b'{"text": ""}',
    b'{"text": "\\udc00"}',
    b'{"text": "\xff"}',
    b'{"text": "last"}',
]


@pytest.mark.parametrize("block_bytes", [8, 40, 10_000])
def test_rows_in_are_documents_and_reasons_and_keep_their_numbers(tmp_path, block_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(BAD))
    texts, rows, skipped = read(path, on_error="skip", block_bytes=block_bytes)
    assert (texts, rows) == (["zero", "last"], [0, 7])
    assert skipped == {
        "malformed-json": [1],
        "missing-field": [2],
        "null": [3],
        "empty": [4],
        "lone-surrogate": [5],
        "invalid-utf8": [6],
    }
    listed = [row for batch in iter_text(find_files(path), on_error="skip") for row in batch.listed]
    assert [(row.line, row.reason) for row in listed][:2] == [(3, "malformed-json"), (4, "missing-field")]


@pytest.mark.parametrize("block_bytes", [8, 10_000])
def test_raising_names_file_line_and_reason(tmp_path, block_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(BAD))
    with pytest.raises(BadRecord, match=r"line 3 of .*a.jsonl .*malformed-json") as caught:
        read(path, block_bytes=block_bytes)
    assert (caught.value.file, caught.value.line, caught.value.reason) == (str(path), 3, "malformed-json")


def test_a_wrong_field_names_the_fields_there_are(tmp_path):
    for kind in ("jsonl", "json", "parquet"):
        path = make(tmp_path, kind, ["one", "two"])
        for on_error in ("raise", "skip"):
            with pytest.raises(ConfigError, match=r"'body'.*'text'"):
                read(path, text_field="body", on_error=on_error)
    with pytest.raises(ConfigError, match=r"'n' of .* holds no text"):
        read(path, text_field="n")


def test_a_table_with_nulls_empties_and_other_string_types(tmp_path):
    values = ["one", None, "", "two"] * 3
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(
            pa.table({"text": pa.array(values, pa.string()).cast(kind)}), tmp_path / "a.parquet", row_group_size=5
        )
        texts, rows, skipped = read(tmp_path / "a.parquet", on_error="skip")
        assert texts == ["one", "two"] * 3
        assert rows == [0, 3, 4, 7, 8, 11]
        assert skipped == {"null": [1, 5, 9], "empty": [2, 6, 10]}
    with pytest.raises(BadRecord, match=r"row 2 of .*null"):
        read(tmp_path / "a.parquet")


def test_a_table_whose_strings_are_no_utf8(tmp_path):
    offsets, data = np.array([0, 1, 2, 4], np.int32), b"\xc3\xa9ok"  # two rows share the bytes of one é
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(data))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", on_error="skip") == (["ok"], [2], {"invalid-utf8": [0, 1]})


def test_text_files_that_are_no_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\ncaf\xe9\nalso fine\n")
    assert read(tmp_path, documents="line", on_error="skip") == (["fine", "also fine"], [0, 2], {"invalid-utf8": [1]})
    assert read(tmp_path, on_error="skip") == ([], [], {"invalid-utf8": [0]})
    with pytest.raises(BadRecord, match=r"line 2 of .*invalid-utf8"):
        read(tmp_path, documents="line")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_a_truncated_archive_raises_and_several_in_one_file_are_all_read(tmp_path, suffix, kind):
    first, second = json_lines(documents(2000)), json_lines(documents(100, seed=1))
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(compressed(first, suffix) + compressed(second, suffix))
    options = {"documents": "line"} if kind == "txt" else {}
    assert len(read(path, **options)[0]) == 2100
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2, len(compressed(first, suffix)) + 6):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadBlock, match=r"a\..* is damaged"):
            read(path, **options)


@pytest.mark.parametrize("damage", [b"", b"no table", None])
def test_a_corrupt_table_is_named(tmp_path, damage):
    path = make(tmp_path, "parquet", documents(100))
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(BadBlock, match=r"a.parquet cannot be read as Parquet"):
        read(path)


def test_a_json_array_cut_short_is_named(tmp_path):
    path = make(tmp_path, "json", documents(10))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadBlock, match="truncated, or malformed"):
        read(path)


def test_many_small_files_make_few_batches(tmp_path):
    texts = documents(500)
    for i, text in enumerate(texts):
        (tmp_path / f"{i:04}.txt").write_text(text)
    assert read(tmp_path)[0] == texts
    assert len(list(iter_text(find_files(tmp_path)))) == 1
    assert list(iter_strings(find_files(tmp_path))) == texts


def test_a_file_whose_kind_its_name_does_not_say(tmp_path):
    (tmp_path / "corpus").write_bytes(json_lines(["one", "two"]))
    assert list(iter_strings([source_file(tmp_path / "corpus", kind="jsonl")])) == ["one", "two"]
