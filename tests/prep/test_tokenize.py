"""Text becomes bins: the same bytes however it is done, and nothing lost on the way."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import BadRecord, ConfigError, FormatError, StoreError
from penstock.formats.files import lock_folder
from penstock.formats.tokens import open_bin
from penstock.prep.token_job import Share
from penstock.prep.tokenize import tokenize
from penstock.prep.train_tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setitem(tokenize.__kwdefaults__, "show_progress", False)


def test_every_document_comes_back_in_order_as_it_was(tmp_path, corpus, bpe):
    texts = corpus.texts(300)
    reports = tokenize(corpus.write(tmp_path / "a.jsonl", texts), tmp_path / "out", tokenizer=bpe)
    report = reports["train"]
    assert corpus.documents_of(report.path, bpe) == texts
    assert (report.status, report.num_documents, report.rows_in, report.skipped) == ("written", 300, 300, {})
    assert report.num_tokens == len(open_bin(report.path)) == sum(len(bpe.encode(text)) for text in texts)
    assert sorted(os.listdir(tmp_path / "out")) == ["train.bin", "train.docs", "train.json"]


@pytest.mark.parametrize("tokenizer", ["bpe", "gpt2", "bytes"])
@pytest.mark.usefixtures("_small_blocks")
def test_the_bytes_do_not_depend_on_workers_or_their_timing(tmp_path, corpus, request, tokenizer, monkeypatch):
    opened = "bytes" if tokenizer == "bytes" else request.getfixturevalue(tokenizer)
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(400))
    seen = set()
    for num_workers in (None, 1, 2, 4):
        folder = tmp_path / str(num_workers)
        tokenize(source, folder, tokenizer=opened, num_workers=num_workers, eot=tokenizer != "bytes")
        seen.add(tuple(corpus.contents(folder).values()))
    assert len(seen) == 1


def test_the_same_texts_in_other_files_give_the_same_tokens(tmp_path, corpus, bpe):
    texts = corpus.texts(200)
    corpus.write(tmp_path / "lines.jsonl", texts)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wb") as file:
        file.write((tmp_path / "lines.jsonl").read_bytes())
    (tmp_path / "array.json").write_text(json.dumps([{"text": text} for text in texts]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "table.parquet", row_group_size=30)
    for i, text in enumerate(texts):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{i:04}.txt").write_bytes(text.encode())
    sources = ["lines.jsonl", "packed.jsonl.gz", "array.json", "table.parquet", "texts", "texts/*.txt"]
    made = [tokenize(tmp_path / name, tmp_path / f"out{i}", tokenizer=bpe) for i, name in enumerate(sources)]
    files = [[each["train"].path.with_suffix(suffix).read_bytes() for suffix in (".bin", ".docs")] for each in made]
    assert all(each == files[0] for each in files)


def test_end_of_text_comes_on_request_only_and_is_text_in_a_text(tmp_path, corpus, bpe):
    texts = ["one <|endoftext|> two", "", "three"]
    source = corpus.write(tmp_path / "a.jsonl", texts)
    plain = open_bin(tokenize(source, tmp_path / "plain", tokenizer=bpe)["train"].path)
    ended = open_bin(tokenize(source, tmp_path / "ended", tokenizer=bpe, eot=True)["train"].path)
    assert bpe.eot_id not in plain.tokens
    assert plain.tokens.tolist() == bpe.encode(texts[0]) + bpe.encode(texts[2])
    assert ended.tokens.tolist() == [*bpe.encode(texts[0]), bpe.eot_id, *bpe.encode(texts[2]), bpe.eot_id]
    assert ended.tokens[ended.doc_ends.astype(np.int64) - 1].tolist() == [bpe.eot_id] * 2
    assert plain.meta["special_tokens"] == {"eot": "none", "eot_id": None}
    assert ended.meta["special_tokens"] == {"eot": "append", "eot_id": bpe.eot_id}
    with pytest.raises(ConfigError, match="bytes has no end-of-text token"):
        tokenize(source, tmp_path / "bytes", tokenizer="bytes", eot=True)


def test_a_large_vocabulary_makes_four_byte_ids(tmp_path, corpus):
    tokens = [f"<unused{i}>" for i in range(70_000)]
    large = train_tokenizer(corpus.texts(50), 70_300, tmp_path / "large.json", special_tokens=tokens)
    texts = corpus.texts(20, seed=1)
    opened = open_bin(
        tokenize(corpus.write(tmp_path / "a.jsonl", texts), tmp_path / "out", tokenizer=large)["train"].path
    )
    assert opened.dtype == np.uint32
    assert int(opened.tokens.min()) >= 70_000
    assert corpus.documents_of(opened.path, large) == texts


def test_the_side_car_says_how_the_bin_was_made(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(10))
    meta = open_bin(tokenize(source, tmp_path / "out", tokenizer=bpe)["train"].path).meta
    assert meta["tokenizer"] == {"name": bpe.name, "fingerprint": bpe.fingerprint, "vocab_size": bpe.vocab_size}
    assert meta["counts"] == {"rows_in": 10, "documents_out": 10, "skipped": {}}
    assert [name for name, *_ in meta["source"]] == ["a.jsonl"]
    assert str(tmp_path) not in json.dumps(meta)


MESSY = [
    (b'{"text": "good"}', None),
    (b'{"text": "cut', "malformed-json"),
    (b'{"txt": "x"}', "missing-field"),
    (b'{"text": null}', "null"),
    (b'{"text": 3}', "not-a-string"),
    (b'{"text": "\\udfff"}', "lone-surrogate"),
    (b'{"text": "\xe9"}', "invalid-utf8"),
    (b'{"text": ""}', "empty"),
    (b"[1]", "not-an-object"),
]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("val_fraction", [0.0, 0.3])
def test_rows_in_are_documents_out_and_rows_skipped_by_reason_and_line(tmp_path, bpe, val_fraction):
    rows = random.Random(0).choices(MESSY, k=900)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line for line, _ in [MESSY[0], *rows]))
    reports = tokenize(
        tmp_path / "a.jsonl", tmp_path / "out", tokenizer=bpe, on_error="skip", val_fraction=val_fraction
    )
    expected = {reason: sum(1 for _, other in rows if other == reason) for _, reason in MESSY[1:]}
    found = {reason: sum(each.skipped.get(reason, 0) for each in reports.values()) for reason in expected}
    assert found == expected
    assert sum(each.rows_in for each in reports.values()) == 901
    for each in reports.values():
        assert each.rows_in == each.num_documents + sum(each.skipped.values())
        assert len(each.listed) == 100 if val_fraction == 0 else 0 < len(each.listed) <= 100
        assert all(rows[row["line"] - 2][1] == row["reason"] for row in each.listed)
        assert [row["line"] for row in each.listed] == sorted({row["line"] for row in each.listed})


@pytest.mark.parametrize(("line", "reason"), [pair for pair in MESSY[1:] if pair[1] != "empty"])
def test_a_bad_row_ends_the_run_by_default_and_says_where(tmp_path, bpe, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    with pytest.raises(BadRecord, match=rf"line 2 of .*a\.jsonl .*{reason}") as caught:
        tokenize(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=bpe)
    assert (caught.value.line, caught.value.reason) == (2, reason)
    assert not (tmp_path / "out" / "train.bin").exists()


def test_after_a_bad_row_the_run_goes_on_with_skip(tmp_path, bpe):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text"\n{"text": "two"}\n')
    with pytest.raises(BadRecord):
        tokenize(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=bpe)
    report = tokenize(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=bpe, on_error="skip")["train"]
    assert (report.num_documents, report.skipped) == (2, {"malformed-json": 1})
    with pytest.raises(ConfigError, match='made with on_error="skip", which passed over'):
        tokenize(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=bpe)


@pytest.mark.usefixtures("_small_blocks")
def test_validation_rows_are_disjoint_complete_and_the_same_every_time(tmp_path, corpus, bpe):
    texts = [f"{i} {text}" for i, text in enumerate(corpus.texts(600))]
    source = corpus.write(tmp_path / "a.jsonl", texts)
    out = [tmp_path / name for name in ("one", "two", "other")]
    tokenize(source, out[0], tokenizer=bpe, val_fraction=0.2)
    tokenize(source, out[1], tokenizer=bpe, val_fraction=0.2, num_workers=1)
    tokenize(source, out[2], tokenizer=bpe, val_fraction=0.2, seed=1)
    train, validation = (corpus.documents_of(out[0] / f"{split}.bin", bpe) for split in ("train", "validation"))
    assert sorted([*train, *validation]) == sorted(texts)
    assert train == [text for text in texts if text in set(train)]
    assert 80 < len(validation) < 160
    for split in ("train", "validation"):
        assert corpus.contents(out[0], split) == corpus.contents(out[1], split)
    assert corpus.documents_of(out[2] / "validation.bin", bpe) != validation


def test_a_share_is_as_large_as_it_says_whatever_the_seed():
    rows = np.arange(1_000_000)
    for seed in range(3):
        picked = Share(fraction=0.01, seed=seed, picked=True).takes(rows)
        assert abs(int(picked.sum()) - 10_000) < 400
        assert (picked != Share(fraction=0.01, seed=seed, picked=False).takes(rows)).all()
        assert (picked[500:600] == Share(fraction=0.01, seed=seed, picked=True).takes(rows[500:600])).all()


def test_the_sources_own_splits_are_kept(tmp_path, corpus, bpe):
    train, validation, test = (corpus.texts(20, seed) for seed in range(3))
    corpus.write(tmp_path / "src" / "train-00000-of-00002.jsonl", train[:12])
    corpus.write(tmp_path / "src" / "train-00001-of-00002.jsonl", train[12:])
    corpus.write(tmp_path / "src" / "val.jsonl", validation)
    corpus.write(tmp_path / "src" / "test" / "part.jsonl", test)
    reports = tokenize(tmp_path / "src", tmp_path / "out", tokenizer=bpe)
    assert list(reports) == ["test", "train", "validation"]
    found = {split: corpus.documents_of(report.path, bpe) for split, report in reports.items()}
    assert found == {"train": train, "validation": validation, "test": test}
    with pytest.raises(ConfigError, match="has a validation split of its own"):
        tokenize(tmp_path / "src", tmp_path / "other", tokenizer=bpe, val_fraction=0.1)


def test_splits_can_be_named_and_chosen(tmp_path, corpus, bpe):
    a, b = corpus.write(tmp_path / "a.jsonl", ["one"]), corpus.write(tmp_path / "b.jsonl", ["two"])
    reports = tokenize({"train": a, "val": [b]}, tmp_path / "out", tokenizer=bpe, splits=["validation"])
    assert list(reports) == ["validation"]
    assert corpus.documents_of(tmp_path / "out" / "validation.bin", bpe) == ["two"]
    with pytest.raises(ConfigError, match=r"unknown split 'tset': the source has train, validation"):
        tokenize({"train": a, "val": b}, tmp_path / "out", tokenizer=bpe, splits=["tset"])
    with pytest.raises(ConfigError, match=r"unknown split 'validation': the source has train; val_fraction makes"):
        tokenize(a, tmp_path / "out", tokenizer=bpe, splits=["validation"])


@pytest.mark.parametrize("missing", ["train", "validation"])
@pytest.mark.usefixtures("_small_blocks")
def test_a_missing_split_is_built_alone(tmp_path, corpus, bpe, missing):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(200))
    tokenize(source, tmp_path / "out", tokenizer=bpe, val_fraction=0.2)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()}
    for suffix in (".bin", ".docs", ".json"):
        (tmp_path / "out" / f"{missing}{suffix}").unlink()
    reports = tokenize(source, tmp_path / "out", tokenizer=bpe, val_fraction=0.2)
    assert {split: report.status for split, report in reports.items()} == {
        "train": "unchanged",
        "validation": "unchanged",
        missing: "written",
    }
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == before[path.name][0]
        assert (path.stat().st_mtime_ns == before[path.name][1]) == (path.stem != missing)


def test_a_second_run_has_nothing_to_do_and_says_so(tmp_path, corpus, bpe, capfd):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(10))
    first = tokenize(source, tmp_path / "out", tokenizer=bpe)["train"]
    written = first.path.stat().st_mtime_ns
    second = tokenize(source, tmp_path / "out", tokenizer=bpe, show_progress=True)["train"]
    assert (second.status, second.num_tokens) == ("unchanged", first.num_tokens)
    assert first.path.stat().st_mtime_ns == written
    assert "nothing to do" in capfd.readouterr().err


CHANGES = {
    "tokenizer": {"tokenizer": "bytes"},
    "eot": {"eot": True},
    "share": {"val_fraction": 0.5},
    "text_field": {"text_field": "other"},
    "source": {},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("state", ["done", "begun"])
@pytest.mark.usefixtures("_small_blocks")
def test_another_run_is_refused_with_the_difference_and_nothing_is_touched(tmp_path, corpus, bpe, change, state):
    texts = corpus.texts(100)
    source = corpus.write(tmp_path / "a.jsonl", texts)
    good = source.read_bytes()
    if state == "begun":
        source.write_bytes(good + b"{broken")
        with pytest.raises(BadRecord):
            tokenize(source, tmp_path / "out", tokenizer=bpe, commit_every_s=0)
        if change != "source":
            good = source.read_bytes()
    else:
        tokenize(source, tmp_path / "out", tokenizer=bpe)
    if change == "source":
        source.write_bytes(good + b"\n")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert ("train.bin" in before) == (state == "done")
    what = "train.bin was made by another run" if state == "done" else "out holds an unfinished run with other options"
    with pytest.raises(ConfigError, match=rf"{what} .*{change}:.* there, .* asked for.*overwrite=True .--overwrite"):
        tokenize(source, tmp_path / "out", **{"tokenizer": bpe, **CHANGES[change]})
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    source.write_bytes(good.removesuffix(b"{broken"))
    if change not in ("text_field", "eot", "share"):
        report = tokenize(source, tmp_path / "out", overwrite=True, **{"tokenizer": bpe, **CHANGES[change]})["train"]
        assert report.status == "written"
        assert report.num_documents == 100
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out"]


def test_a_split_that_does_not_fit_the_others_in_the_folder_is_refused(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(50))
    tokenize({"train": source}, tmp_path / "out", tokenizer=bpe)
    for options in ({"tokenizer": "bytes"}, {"tokenizer": "bytes", "overwrite": True}):
        with pytest.raises(ConfigError, match=r"train.bin was made by another run .tokenizer"):
            tokenize({"validation": source}, tmp_path / "out", **options)
    with pytest.raises(
        ConfigError, match=r"train.bin was made by another run .share"
    ):  # it holds the rows to be picked
        tokenize(source, tmp_path / "out", tokenizer=bpe, val_fraction=0.2, splits=["validation"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"val_fraction": 0.2}, {"val_fraction": 0.5}),
        ({"val_fraction": 0.2}, {"val_fraction": 0.2, "seed": 1}),
        ({}, {"val_fraction": 0.2}),
    ],
)
def test_a_touched_or_copied_source_is_not_divided_twice(tmp_path, corpus, bpe, first, second):
    """One document would be in both splits. What was divided alike fits, and other files are other documents."""
    texts = corpus.texts(40)
    source = corpus.write(tmp_path / "a.jsonl", texts)
    tokenize(source, tmp_path / "out", tokenizer=bpe, splits=["train"], **first)
    os.utime(source, (1, 1))
    (tmp_path / "copy").mkdir()
    shutil.copyfile(source, tmp_path / "copy" / "a.jsonl")
    for place in (source, tmp_path / "copy"):
        with pytest.raises(ConfigError, match=r"train.bin was made by another run .share"):
            tokenize(place, tmp_path / "out", tokenizer=bpe, splits=["validation"], **second)
    assert not (tmp_path / "out" / "validation.bin").exists()

    if first:
        tokenize(source, tmp_path / "out", tokenizer=bpe, splits=["validation"], **first)
        found = [corpus.documents_of(tmp_path / "out" / f"{split}.bin", bpe) for split in ("train", "validation")]
        assert sorted(found[0] + found[1]) == sorted(texts)


def test_a_share_beside_a_split_of_other_files_is_no_overlap(tmp_path, corpus, bpe):
    tokenize({"test": corpus.write(tmp_path / "b.jsonl", corpus.texts(30))}, tmp_path / "out", tokenizer=bpe)
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(40))
    reports = tokenize(source, tmp_path / "out", tokenizer=bpe, val_fraction=0.5)
    assert sorted(reports) == ["train", "validation"]


def test_what_a_row_is_belongs_to_how_a_source_is_divided(tmp_path, bpe):
    source = tmp_path / "a.txt"
    source.write_text("".join(f"line {i}\n\nmore {i}\n" for i in range(40)))
    tokenize(source, tmp_path / "out", tokenizer=bpe, documents="line", val_fraction=0.3, splits=["train"])
    with pytest.raises(ConfigError, match=r"train.bin was made by another run .documents"):
        tokenize(
            source, tmp_path / "out", tokenizer=bpe, documents="paragraph", val_fraction=0.3, splits=["validation"]
        )


@pytest.mark.parametrize("name", ["train.bin", "train.json", "train.docs", "block_manifest.json", "other.bin"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_never_overwritten(tmp_path, corpus, bpe, name, overwrite):
    source = corpus.write(tmp_path / "a.jsonl", ["one"])
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b'{"mine": 1}')
    if name == "other.bin":  # a bare bin beside ours disturbs nobody
        tokenize(source, out, tokenizer=bpe, overwrite=overwrite)
    else:
        with pytest.raises(ConfigError, match=name):
            tokenize(source, out, tokenizer=bpe, overwrite=overwrite)
        assert os.listdir(out) == [name]
    assert (out / name).read_bytes() == b'{"mine": 1}'


def test_two_runs_on_one_folder_do_not_mix(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", ["one"])
    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out"), pytest.raises(StoreError, match="another process is writing"):
        tokenize(source, tmp_path / "out", tokenizer=bpe)
    assert os.listdir(tmp_path / "out") == []


def test_a_split_without_documents_is_an_error(tmp_path, corpus, bpe):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n' * 3)
    with pytest.raises(FormatError, match="the split train got no document: 0 rows"):
        tokenize(tmp_path / "empty.jsonl", tmp_path / "out", tokenizer=bpe)
    with pytest.raises(FormatError, match=r"no document: 3 rows, skipped \{'empty': 3\}"):
        tokenize(tmp_path / "blank.jsonl", tmp_path / "out2", tokenizer=bpe)
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(5))
    with pytest.raises(FormatError, match=r"validation got no document: .* a larger val_fraction"):
        tokenize(source, tmp_path / "out3", tokenizer=bpe, val_fraction=1e-9)
    assert not list(tmp_path.glob("out*/*"))


def test_one_text_file_is_one_document_and_cannot_be_divided(tmp_path, bpe):
    """Known before anything is read; where it shows at the end only, the next try finds nothing in its way."""
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\n\nfour\n")
    options = {"tokenizer": bpe, "val_fraction": 0.5}
    with pytest.raises(ConfigError, match=r"is 1 document \(a .txt file is one document\): .*--documents\) makes more"):
        tokenize(tmp_path / "a.txt", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.txt").touch()
    sources = [tmp_path / f"{name}.txt" for name in "abc"]
    picks = ((seed, Share(fraction=0.5, seed=seed, picked=True).takes(np.arange(3)).tolist()) for seed in range(99))
    seed = next(seed for seed, picked in picks if picked == [False, True, True])
    with pytest.raises(FormatError, match=r"got no document: .* the source is 1 document "):
        tokenize(sources, tmp_path / "out", **options, seed=seed)
    assert os.listdir(tmp_path / "out") == []
    reports = tokenize(tmp_path / "a.txt", tmp_path / "out", **options, seed=1, documents="paragraph", eot=True)
    assert sum(report.num_documents for report in reports.values()) == 4


def test_documents_come_without_what_separates_them_and_eot_takes_its_place(tmp_path, corpus, bpe):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    expected = {"line": ["one", "two", "three"], "paragraph": ["one\ntwo", "three"], "file": ["one\ntwo\n\n\nthree\n"]}
    for documents, texts in expected.items():
        plain = tokenize(tmp_path / "a.txt", tmp_path / documents, tokenizer=bpe, documents=documents)["train"]
        assert corpus.documents_of(plain.path, bpe) == texts
        ended = tokenize(
            tmp_path / "a.txt", tmp_path / f"{documents}-eot", tokenizer=bpe, documents=documents, eot=True
        )
        ids = open_bin(ended["train"].path).tokens.tolist()
        assert ids == [i for text in texts for i in [*bpe.encode(text), bpe.eot_id]]


def test_text_files_of_which_none_would_be_picked_are_refused_before_they_are_read(tmp_path, bpe):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    with pytest.raises(ConfigError, match=r"validation would get none of 3 documents .* a larger val_fraction"):
        tokenize(str(tmp_path / "*.txt"), tmp_path / "out", tokenizer=bpe, val_fraction=1e-9)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_small_blocks")
def test_a_refused_run_hears_the_names_of_both_tokenizers(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(100))
    tokenize(source, tmp_path / "out", tokenizer=bpe)
    names = rf"tokenizer: {bpe.name} \(.*\) there, bytes \(.*\) asked for"
    with pytest.raises(ConfigError, match=names):
        tokenize(source, tmp_path / "out", tokenizer="bytes")
    source.write_bytes(source.read_bytes() + b"{broken")
    with pytest.raises(BadRecord):
        tokenize(source, tmp_path / "begun", tokenizer=bpe, commit_every_s=0)
    with pytest.raises(ConfigError, match=names):
        tokenize(source, tmp_path / "begun", tokenizer="bytes")


def test_an_error_before_any_work_prints_no_progress(tmp_path, bpe, capfd):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(FormatError):
        tokenize(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=bpe, show_progress=True)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction must be a number from 0 to below 1"),
        ({"val_fraction": "0.1"}, "val_fraction must be a number"),
        ({"num_workers": 0}, "num_workers must be an integer >= 1, got 0"),
        ({"documents": "page"}, "documents must be one of None, 'file'"),
        ({"documents": "line"}, "is about .txt files, and the source has none"),
        ({"on_error": "ignore"}, "on_error must be one of 'raise', 'skip'"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"splits": "train"}, "splits must be a list of names"),
        ({"splits": []}, "splits must be a list of names"),
        ({"tokenizer": "no-such-tokenizer"}, "no-such-tokenizer"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_is_made(tmp_path, corpus, bpe, options, message):
    source = corpus.write(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(ConfigError, match=message):
        tokenize(source, tmp_path / "out", **{"tokenizer": bpe, **options})
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.usefixtures("_small_blocks")
def test_an_error_leaves_no_thread_behind(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(200))
    source.write_bytes(source.read_bytes() + b"{broken\n")
    before = threading.active_count()
    with pytest.raises(BadRecord):
        tokenize(source, tmp_path / "out", tokenizer=bpe)
    assert threading.active_count() == before


def test_a_document_longer_than_a_block_is_encoded_whole(tmp_path, corpus, gpt2):
    text = "water flows " * 60_000
    (tmp_path / "a.txt").write_text(text)
    report = tokenize(tmp_path / "a.txt", tmp_path / "out", tokenizer=gpt2)["train"]
    assert open_bin(report.path).tokens.tolist() == gpt2.encode(text)
