"""Text and a tokenizer as training samples: the windows, the cache they are read from, and who makes it."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import text_subjects as subjects
from penstock import BadRecord, ConfigError, ObjectMissing, StreamingDataLoader, Tokenizer, TransformerDataset
from penstock.errors import FormatError, StoreError
from penstock.formats.files import lock_folder
from penstock.formats.tokens import open_bin, verify_bin
from penstock.testing import check_fetch, check_resume
from text_subjects import STREAM, TEXTS, CountingTokenizer, ListTokenizer, write_jsonl

BYTES = Tokenizer.from_pretrained("bytes")


@pytest.fixture
def jsonl(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", TEXTS)


def cached_bins(folder: Path) -> list[Path]:
    return sorted(folder.rglob("tokens.bin"))


def run(program: str, *arguments: object) -> subprocess.Popen:
    """Start a process that has these tests' subjects."""
    head = f"import sys; sys.path[:] = {sys.path!r}\n"
    command = [sys.executable, "-c", head + program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


BUILD = """
from pathlib import Path
from text_subjects import CountingTokenizer
from penstock import TransformerDataset
data, log, delay, dies_at = sys.argv[1:5]
tokenizer = CountingTokenizer(Path(log), delay_s=float(delay), dies_at=int(dies_at) or None)
print(TransformerDataset(data, tokenizer, 16).fingerprint)
"""


def test_a_sample_is_a_window_and_the_same_shifted_by_one(jsonl):
    dataset = TransformerDataset(jsonl, BYTES, 16)
    assert len(dataset) == len(STREAM) - 16
    assert dataset.num_tokens == len(STREAM)
    for i in (0, 1, 17, len(dataset) - 1):
        sample = dataset[i]
        assert sample["input_ids"].tolist() == list(STREAM[i : i + 16])
        assert sample["labels"].tolist() == list(STREAM[i + 1 : i + 17])
        assert {values.dtype for values in sample.values()} == {torch.int64}
    assert dataset[-1]["labels"].tolist() == list(STREAM[-16:])


def test_it_says_in_one_line_what_it_is(jsonl):
    count = f"samples of {len(STREAM):,} tokens)"
    dataset = TransformerDataset(jsonl, "bytes", 16)
    assert repr(dataset) == f"TransformerDataset(seq_length=16, stride=1: {len(STREAM) - 16:,} {count}"
    dataset = TransformerDataset(jsonl, "bytes", 16, by_document=True, overlap=4)
    assert repr(dataset) == f"TransformerDataset(seq_length=16, by_document=True, overlap=4: {len(dataset):,} {count}"


def test_indices_outside_are_refused(jsonl):
    dataset = TransformerDataset(jsonl, BYTES, 16)
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_rows_depend_on_their_id_only(jsonl):
    check_fetch(TransformerDataset(jsonl, BYTES, 16))
    check_fetch(TransformerDataset(jsonl, BYTES, 16, by_document=True))


@pytest.mark.parametrize("stride", [1, 2, 3, 15, 17, 1000])
def test_strides_skip_and_count_as_documented(jsonl, stride):
    dataset = TransformerDataset(jsonl, BYTES, 16, stride=stride)
    assert len(dataset) == (len(STREAM) - 16 - 1) // stride + 1
    assert dataset[-1]["input_ids"][0] == STREAM[(len(dataset) - 1) * stride]


def test_windows_side_by_side_make_every_token_a_target_once(jsonl):
    dataset = TransformerDataset(jsonl, BYTES, 16, stride=16)
    labels = dataset.fetch(np.arange(len(dataset)))["labels"].ravel()
    assert labels[labels != -100].tolist() == list(STREAM[1:])


def test_text_files_hold_samples_between_blank_lines(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\none\nline two\n\n \t\n\nthree\n\n\n")
    assert bytes(TransformerDataset(path, BYTES, 4).fetch(np.array([0]))["input_ids"][0].tolist()) == b"one\n"
    tokens = open_bin(cached_bins(tmp_path)[0])
    assert bytes(tokens.tokens.tolist()) == b"one\nline twothree"
    assert tokens.doc_ends.tolist() == [12, 17]


def test_blank_lines_are_skipped_and_a_bad_line_is_named(tmp_path):
    good = json.dumps({"text": "a" * 50})
    path = tmp_path / "train.jsonl"
    path.write_text(f"{good}\n\n  \n{good}\n")
    assert TransformerDataset(path, BYTES, 16).num_tokens == 100
    path.write_text(f"{good}\n\n{good}\n{{broken\n")
    with pytest.raises(BadRecord, match=r"line 4 of .*train.jsonl") as caught:
        TransformerDataset(path, BYTES, 16)
    assert caught.value.line == 4


def test_a_wrong_field_names_those_there_are(jsonl):
    with pytest.raises(ConfigError, match="'id', 'text'"):
        TransformerDataset(jsonl, BYTES, 16, text_field="body")


def test_suffixes_tell_what_is_inside_unless_told(tmp_path):
    lines = write_jsonl(tmp_path / "corpus.jsonl", ["water " * 9] * 2)
    assert TransformerDataset(lines, BYTES, 16).num_tokens == 108
    assert TransformerDataset(lines, BYTES, 16, is_jsonl=False).num_tokens == len(lines.read_bytes()) - 1
    odd = shutil.copy(lines, tmp_path / "corpus.data")
    assert TransformerDataset(odd, BYTES, 16, is_jsonl=True).num_tokens == 108
    assert TransformerDataset(odd, BYTES, 16).num_tokens == len(lines.read_bytes()) - 1


def test_several_files_are_one_stream(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    for j in range(4):
        write_jsonl(parts / f"{j}.jsonl", TEXTS[j * 10 : j * 10 + 10])
    whole = TransformerDataset(write_jsonl(tmp_path / "all.jsonl", TEXTS), BYTES, 16)
    for source in (parts, [parts / f"{j}.jsonl" for j in range(4)], str(parts / "*.jsonl")):
        assert TransformerDataset(source, BYTES, 16).fingerprint == whole.fingerprint


def test_every_kind_of_file_gives_the_same_stream(jsonl, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl.read_bytes()))
    array = tmp_path / "corpus.json"
    array.write_text(json.dumps([{"text": text} for text in TEXTS]))
    table = tmp_path / "corpus.parquet"
    pa.parquet.write_table(pa.table({"text": TEXTS}), table)
    expected = TransformerDataset(jsonl, BYTES, 16).fingerprint
    assert [TransformerDataset(path, BYTES, 16).fingerprint for path in (packed, array, table)] == [expected] * 3


@pytest.mark.parametrize(
    "kind",
    [
        subjects.ListTokenizer,
        subjects.DictTokenizer,
        subjects.NestedTokenizer,
        subjects.BatchEncodingTokenizer,
        subjects.AttributeTokenizer,
        subjects.NumpyTokenizer,
        subjects.TorchTokenizer,
    ],
)
def test_every_kind_of_tokenizer_gives_the_same_samples(jsonl, kind):
    dataset = TransformerDataset(jsonl, kind(), 16)
    assert len(dataset) == len(STREAM) - 16
    ids = np.arange(0, len(dataset), 7)
    expected = TransformerDataset(jsonl, BYTES, 16).fetch(ids)
    assert all((expected[name] == values).all() for name, values in dataset.fetch(ids).items())


def test_a_real_tokenizers_tokenizer(jsonl):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    stream = [id_ for text in TEXTS for id_ in tokenizer.encode(text).ids]
    dataset = TransformerDataset(jsonl, tokenizer, 8)
    assert dataset[5]["labels"].tolist() == stream[6:14]
    assert len(dataset) == len(stream) - 8


def test_ids_are_as_wide_as_the_vocabulary_needs(jsonl, tmp_path):
    class Wide(ListTokenizer):
        def __init__(self, vocab_size: int) -> None:
            self.vocab_size = vocab_size

        def encode(self, text: str):
            return [70_000 + byte for byte in text.encode()]

    TransformerDataset(jsonl, BYTES, 16, cache_dir=tmp_path / "narrow")
    dataset = TransformerDataset(jsonl, Wide(100_000), 16, cache_dir=tmp_path / "wide")
    assert open_bin(cached_bins(tmp_path / "narrow")[0]).dtype == np.uint16
    assert open_bin(cached_bins(tmp_path / "wide")[0]).dtype == np.uint32
    assert dataset[0]["input_ids"].tolist() == [70_000 + byte for byte in STREAM[:16]]
    with pytest.raises(FormatError, match="outside its vocabulary of 500"):
        TransformerDataset(jsonl, Wide(500), 16)


def test_what_is_cached_is_a_bin_with_proof(jsonl, tmp_path):
    TransformerDataset(jsonl, BYTES, 16)
    (path,) = cached_bins(tmp_path / ".penstock")
    verify_bin(path)
    assert open_bin(path).meta["counts"] == {"rows_in": 40, "documents_out": 40, "skipped": {}}
    assert not [name for name in path.parent.iterdir() if "partial" in name.name or "lock" in name.name]


def test_it_is_tokenized_once_for_a_content_and_a_tokenizer(tmp_path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    tokenizer = CountingTokenizer(log)
    path = write_jsonl(tmp_path / "train.jsonl", TEXTS)

    def encoded(data: Path, **options: object) -> int:
        before = len(log.read_text().split()) if log.exists() else 0
        TransformerDataset(data, tokenizer, 16, cache_dir=cache, **options)
        return len(log.read_text().split()) - before

    assert encoded(path) == len(TEXTS)
    assert encoded(path) == 0
    copy = tmp_path / "elsewhere.jsonl"
    shutil.copy(path, copy)
    assert encoded(copy) == 0
    tokenizer.fingerprint = "another"
    assert encoded(path) == len(TEXTS)
    write_jsonl(path, [TEXTS[0].upper(), *TEXTS[1:]])
    assert path.stat().st_size == copy.stat().st_size
    assert encoded(path) == len(TEXTS)


def test_the_cache_goes_where_it_can_be_written(jsonl, tmp_path, monkeypatch):
    (tmp_path / ".penstock").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    TransformerDataset(jsonl, BYTES, 16)
    assert len(cached_bins(tmp_path / "user" / "penstock")) == 1


def test_processes_that_start_together_tokenize_once(jsonl, tmp_path):
    started = [run(BUILD, jsonl, tmp_path / "log", 0.02, 0) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    pids = (tmp_path / "log").read_text().split()
    assert len(pids) == len(TEXTS)
    assert len(set(pids)) == 1


def test_a_killed_builder_leaves_nothing_that_is_read_and_the_next_goes_on(tmp_path):
    texts = [f"{i:06d} " + "water " * 30_000 for i in range(200)]  # 36 MB: more than two blocks
    path = write_jsonl(tmp_path / "train.jsonl", texts)
    log = tmp_path / "log"
    process = run(BUILD, path, log, 0, 190)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert cached_bins(tmp_path) == []
    dataset = TransformerDataset(path, CountingTokenizer(log), 16, stride=1000)
    assert len(log.read_text().split()) < 190 + len(texts) - 50, "the second builder began anew"
    verify_bin(cached_bins(tmp_path)[0])
    whole = "".join(texts).encode()
    assert dataset.num_tokens == len(whole)
    expected = np.frombuffer(whole, np.uint8)
    assert (open_bin(cached_bins(tmp_path)[0]).tokens == expected).all()


def test_waiting_for_a_builder_that_does_nothing_has_an_end(jsonl, tmp_path):
    TransformerDataset(jsonl, BYTES, 16)
    (path,) = cached_bins(tmp_path)
    path.unlink()
    with lock_folder(path.parent), pytest.raises(StoreError, match=r"without any progress.*timeout="):
        TransformerDataset(jsonl, BYTES, 16, timeout=0.3)


def test_waiting_goes_on_as_long_as_the_builder_does(jsonl, tmp_path):
    TransformerDataset(jsonl, BYTES, 16)
    (path,) = cached_bins(tmp_path)
    finished = path.rename(tmp_path / "finished")

    def build_slowly() -> None:
        with lock_folder(path.parent):
            held.set()
            for step in range(10):
                time.sleep(0.1)
                (path.parent / "part").write_text("x" * step)
            finished.rename(path)

    held = threading.Event()
    builder = threading.Thread(target=build_slowly)
    builder.start()
    assert held.wait(10)
    assert len(TransformerDataset(jsonl, BYTES, 16, timeout=0.6)) == len(STREAM) - 16
    builder.join()


def test_too_little_text_for_a_window_says_so(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", ["a" * 16])
    with pytest.raises(ConfigError, match=r"16 tokens in all.*need 17: use seq_length <= 15"):
        TransformerDataset(path, BYTES, 16)
    assert len(TransformerDataset(path, BYTES, 15)) == 1
    path.write_text("")
    with pytest.raises(ConfigError, match="0 tokens in all"):
        TransformerDataset(path, BYTES, 16)
    with pytest.raises(ObjectMissing):
        TransformerDataset(tmp_path / "absent.jsonl", BYTES, 16)


@pytest.mark.parametrize(
    "options",
    [
        {"seq_length": 0},
        {"stride": 0},
        {"overlap": 3},
        {"by_document": True, "overlap": 16},
        {"by_document": True, "stride": 2},
        {"by_document": "yes"},
        {"is_jsonl": 1},
        {"tokenizer": None},
    ],
)
def test_values_that_cannot_work_are_refused(jsonl, options):
    with pytest.raises(ConfigError):
        TransformerDataset(**{"data_path": jsonl, "tokenizer": BYTES, "seq_length": 16, **options})


def test_by_document_windows_never_cross_a_text(jsonl):
    dataset = TransformerDataset(jsonl, BYTES, 32, by_document=True, overlap=4, pad_id=9)
    rows = dataset.fetch(np.arange(len(dataset)))
    whole = [text.encode() for text in TEXTS]
    assert all(any(bytes(row["input_ids"].tolist()) in text for text in whole) for row in rows)
    assert dataset.lengths.tolist() == [len(row["labels"]) for row in rows]
    shortest = int(np.argmin(dataset.lengths))
    batch = dataset.collate([rows[0], rows[shortest]])
    assert batch["input_ids"].shape == (2, 32)
    assert batch["input_ids"][1, -1] == 9
    assert batch["labels"][1, -1] == -100


def test_it_travels_without_tokenizer_and_tokens(jsonl):
    for options in ({}, {"by_document": True, "overlap": 3}):
        dataset = TransformerDataset(jsonl, lambda_tokenizer(), 16, **options)
        sent = pickle.dumps(dataset)
        assert len(sent) < 1500
        copy = pickle.loads(sent)
        assert copy.fingerprint == dataset.fingerprint
        assert copy[3]["labels"].tolist() == dataset[3]["labels"].tolist()
        assert hasattr(copy, "collate") is hasattr(dataset, "collate") is bool(options)


def lambda_tokenizer():
    """A tokenizer that cannot be pickled."""
    tokenizer = ListTokenizer()
    tokenizer.hook = lambda text: text
    return tokenizer


@pytest.mark.parametrize("options", [{}, {"by_document": True, "overlap": 3}])
def test_the_loader_resumes_it_at_any_batch(jsonl, options):
    dataset = TransformerDataset(jsonl, BYTES, 64, **options)
    check_resume(lambda: StreamingDataLoader(dataset, 16, shuffle=True, seed=1), at=[0, 1, 2, 5])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_torch_dataloader_takes_it(jsonl, num_workers):
    dataset = TransformerDataset(jsonl, BYTES, 16)
    loader = torch.utils.data.DataLoader(dataset, batch_size=256, num_workers=num_workers)
    firsts = torch.cat([batch["input_ids"][:, 0] for batch in loader])
    assert bytes(firsts.tolist()) == STREAM[:-16]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_takes_and_resumes_it(jsonl, num_workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    dataset = TransformerDataset(jsonl, BYTES, 16)

    def loader():
        generator = torch.Generator().manual_seed(5)
        return stateful.StatefulDataLoader(
            dataset, batch_size=64, shuffle=True, generator=generator, num_workers=num_workers
        )

    whole = [batch["labels"] for batch in loader()]
    first = loader()
    batches = iter(first)
    head = [next(batches)["labels"] for _ in range(3)]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    rest = [*head, *(batch["labels"] for batch in second)]
    assert len(rest) == len(whole)
    assert all(torch.equal(left, right) for left, right in zip(whole, rest, strict=True))


def test_importing_it_does_not_import_torch():
    program = "import penstock; penstock.TransformerDataset; penstock.TextDataset; print('torch' in sys.modules)"
    out, _ = run(program).communicate(timeout=60)
    assert out.strip() == "False"


PEAK = """
from penstock import Tokenizer, TransformerDataset
import resource
dataset = TransformerDataset(sys.argv[1], Tokenizer.from_pretrained("bytes"), 128)
print(dataset.num_tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks = {}
    line = json.dumps({"text": "water flows one way " * 50}) + "\n"
    for megabytes in (64, 512):
        path = tmp_path / f"{megabytes}.jsonl"
        with open(path, "w") as file:
            for _ in range(megabytes):
                file.write(line * ((1 << 20) // len(line)))
        out, errors = run(PEAK, path).communicate(timeout=200)
        assert out, errors
        tokens, peaks[megabytes] = map(int, out.split())
        assert tokens > megabytes * 900_000
        path.unlink()
    # Kilobytes. What the system counts for a process includes pages of the bin it maps.
    assert peaks[512] - peaks[64] < 64 * 1024, peaks
