"""Documents by id, straight from the files they are in."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import BadRecord, ConfigError, SampleError, StreamingDataLoader, TextDataset
from penstock.errors import ObjectChanged
from penstock.formats.sources import source_file
from penstock.formats.spans import iter_spans
from penstock.formats.text import iter_strings
from penstock.testing import check_fetch, check_resume
from penstock.transforms.tokenize_text import TokenizeText
from text_subjects import TEXTS, DictTokenizer, write_jsonl

lines = st.sampled_from(["", " ", "\t", "one", "two words", "  indented", "é🙂", "x" * 50])
ends = st.sampled_from(["\n", "\r\n"])


def texts_of(dataset: TextDataset) -> list[str]:
    return [sample["text"] for sample in dataset.fetch(np.arange(len(dataset)))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(lines, ends), max_size=20), st.sampled_from(["line", "paragraph"]), st.booleans())
def test_text_documents_are_those_that_tokenizing_ahead_reads(content, documents, marked):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "corpus.txt")
        path.write_bytes(
            b"\xef\xbb\xbf" * marked + "".join(line + end for line, end in [*content, ("end", "")]).encode()
        )
        assert texts_of(TextDataset(path, documents=documents)) == list(
            iter_strings([source_file(path)], documents=documents)
        )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.text(min_size=1), st.none()), min_size=1, max_size=15), st.booleans())
def test_records_are_those_that_tokenizing_ahead_reads(texts, escaped):
    records = ["" if text is None else json.dumps({"id": 1, "text": text}, ensure_ascii=escaped) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "corpus.jsonl")
        path.write_text("\n".join([*records, '{"text": "last"}']), newline="")
        assert texts_of(TextDataset(path)) == list(iter_strings([source_file(path)]))


@pytest.mark.parametrize("documents", ["line", "paragraph"])
@pytest.mark.parametrize("block_bytes", [1, 7, 64])
def test_where_a_file_is_cut_into_blocks_changes_nothing(tmp_path, documents, block_bytes):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\none\ntwo\n \nthree\n\n\n\nfour five six\nseven\n\n")
    whole = np.concatenate(list(iter_spans(source_file(path), documents)))
    cut = np.concatenate(list(iter_spans(source_file(path), documents, block_bytes=block_bytes)))
    assert cut.tolist() == whole.tolist()
    assert len(whole) == {"line": 5, "paragraph": 3}[documents]


@pytest.fixture
def jsonl(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", TEXTS)


def test_documents_come_by_id(jsonl):
    dataset = TextDataset(jsonl)
    assert len(dataset) == len(TEXTS)
    assert dataset[3] == {"text": TEXTS[3]}
    assert dataset[-1] == {"text": TEXTS[-1]}
    assert [row["text"] for row in dataset.fetch(np.array([7, 0, 7]))] == [TEXTS[7], TEXTS[0], TEXTS[7]]
    assert dataset.lengths.tolist() == [len(line) for line in jsonl.read_bytes().splitlines()]
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match="it has 40"):
            dataset[index]
    for index in (len(dataset), -1):
        with pytest.raises(IndexError, match="it has 40"):
            dataset.fetch(np.array([0, index]))
    check_fetch(dataset)


def test_several_files_are_one_row_of_documents(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    write_jsonl(parts / "a.jsonl", TEXTS[:10])
    (parts / "b.jsonl").write_text("\n")
    write_jsonl(parts / "c.jsonl", TEXTS[10:])
    dataset = TextDataset(parts)
    assert texts_of(dataset) == TEXTS
    assert dataset.lengths.shape == (len(TEXTS),)
    mixed = tmp_path / "mixed.txt"
    mixed.write_text("one\n\ntwo")
    assert texts_of(TextDataset([mixed, parts / "a.jsonl"])) == ["one", "two", *TEXTS[:10]]


def test_the_table_is_made_once_for_a_content(jsonl, tmp_path):
    cache = tmp_path / "cache"
    TextDataset(jsonl, cache_dir=cache)
    (table,) = cache.rglob("documents.spans")
    made = table.stat().st_mtime_ns
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(jsonl.read_bytes())
    assert texts_of(TextDataset(copy, cache_dir=cache)) == TEXTS
    assert [found.stat().st_mtime_ns for found in cache.rglob("documents.spans")] == [made]
    assert TextDataset(copy, cache_dir=cache).fingerprint == TextDataset(jsonl, cache_dir=cache).fingerprint
    write_jsonl(copy, TEXTS[1:])
    assert texts_of(TextDataset(copy, cache_dir=cache)) == TEXTS[1:]
    assert len(list(cache.rglob("documents.spans"))) == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"{broken", "malformed-json"),
        (b'{"body": "x"}', "missing-field"),
        (b'{"text": null}', "null"),
        (b'{"text": 5}', "not-a-string"),
        (b'{"text": "\xff"}', "invalid-utf8"),
    ],
)
def test_a_bad_record_is_named_by_its_line_when_it_is_asked_for(tmp_path, record, reason):
    good = b'{"text": "water"}\n'
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(good + b"\n\n" + good + record + b"\n" + good)
    dataset = TextDataset(path)
    assert dataset[1] == dataset[3] == {"text": "water"}
    with pytest.raises(BadRecord, match=r"line 5 of .*corpus.jsonl") as caught:
        dataset.fetch(np.arange(4))
    assert (caught.value.line, caught.value.reason) == (5, reason)


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"one\n\ntwo\nthree \xff\n\nfour")
    dataset = TextDataset(path)
    assert dataset[2] == {"text": "four"}
    with pytest.raises(BadRecord, match=r"line 3 of .*invalid-utf8"):
        dataset[1]


def test_a_loader_skips_bad_records_if_told_to(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n{broken\n{"text": "b"}\n')
    with StreamingDataLoader(TextDataset(path), 3) as loader, pytest.raises(SampleError, match="line 2"):
        list(loader)
    with StreamingDataLoader(TextDataset(path), 3, on_error="skip") as loader:
        assert list(loader) == [{"text": ["a", "b"]}]
        assert loader.stats.skipped == {"malformed-json": 1}


@pytest.mark.parametrize(
    "workers", [{"num_workers": 0}, {"num_workers": 3}, {"num_workers": 2, "worker_type": "process"}]
)
def test_the_loader_resumes_it_at_any_batch(jsonl, workers):
    dataset = TextDataset(jsonl, pad_id=7)
    transform = TokenizeText(DictTokenizer(), 24, pad_to_length=False)
    options = {"shuffle": True, "seed": 2, "transform": transform, "length_bucket": 8, **workers}
    check_resume(lambda: StreamingDataLoader(dataset, 4, **options), at=[0, 1, 4, 9])


def test_tokenized_batches_are_padded_tensors(jsonl):
    transform = TokenizeText(DictTokenizer(), 1000, pad_to_length=False)
    with StreamingDataLoader(TextDataset(jsonl, pad_id=7), 4, transform=transform) as loader:
        batch = next(iter(loader))
    longest = max(len(text.encode()) for text in TEXTS[:4]) - 1
    assert {name: (values.shape, values.dtype) for name, values in batch.items()} == dict.fromkeys(
        ("input_ids", "labels", "attention_mask"), (torch.Size([4, longest]), torch.int64)
    )
    assert batch["input_ids"][batch["attention_mask"] == 0].unique().tolist() == [7]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_torch_dataloader_takes_it(jsonl):
    batches = list(torch.utils.data.DataLoader(TextDataset(jsonl), batch_size=16, num_workers=2))
    assert [text for batch in batches for text in batch["text"]] == TEXTS


def test_it_travels_as_paths(jsonl):
    dataset = TextDataset(jsonl)
    assert dataset.lengths is not None
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000
    copy = pickle.loads(sent)
    assert texts_of(copy) == TEXTS
    assert copy.fingerprint == dataset.fingerprint


def test_descriptors_go_with_the_dataset(jsonl):
    TextDataset(jsonl)
    before = len(os.listdir("/proc/self/fd"))
    datasets = [TextDataset(jsonl) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) >= before + 5
    del datasets
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_changes_under_it_is_noticed(jsonl):
    dataset = TextDataset(jsonl)
    sent = pickle.dumps(dataset)
    with open(jsonl, "r+b") as file:
        file.truncate(100)
    with pytest.raises(ObjectChanged, match="shorter than when it was opened"):
        dataset[30]
    with pytest.raises(ObjectChanged, match="was written to"):
        pickle.loads(sent)


def test_what_cannot_work_is_refused(tmp_path, jsonl):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(ConfigError, match="no document in it"):
        TextDataset(empty)
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(b"\x1f\x8b")
    with pytest.raises(ConfigError, match="random places"):
        TextDataset(packed)
    with pytest.raises(ConfigError, match="documents must be one of"):
        TextDataset(jsonl, documents="file")
    with pytest.raises(ConfigError, match="pad_id"):
        TextDataset(jsonl, pad_id=-1)
