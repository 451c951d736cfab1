"""From two text files and a tokenizer to the loaders of a training run."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from penstock import ConfigError, Tokenizer, World, create_dataloaders, train_tokenizer
from penstock.loader.text import _workers
from penstock.testing import check_close, check_order_law, check_resume
from text_subjects import STREAM, TEXTS, DictTokenizer, ListTokenizer, add_noise, write_jsonl

BYTES = Tokenizer.from_pretrained("bytes")


@pytest.fixture
def paths(tmp_path):
    text = tmp_path / "val.txt"
    text.write_text("\n\n".join(TEXTS[:10]))
    return write_jsonl(tmp_path / "train.jsonl", TEXTS), text


def make(paths, *, tokenizer=BYTES, batch_size=16, seq_length=32, **options):
    return create_dataloaders(*paths, tokenizer, batch_size=batch_size, seq_length=seq_length, **options)


def windows(batches) -> list[bytes]:
    return [bytes(row.tolist()) for batch in batches for row in batch["input_ids"]]


def test_training_is_shuffled_and_whole_batches_and_validation_is_neither(paths):
    train, val = make(paths, batch_size=24)
    samples = len(STREAM) - 32
    assert (len(train), samples % 24 > 0) == (samples // 24, True)
    batches = list(train)
    assert len(batches) == len(train)
    assert {batch["input_ids"].shape for batch in batches} == {torch.Size([24, 32])}
    assert all(torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1]) for batch in batches)
    seen = windows(batches)
    in_order = [STREAM[i : i + 32] for i in range(samples)]
    assert seen != in_order[: len(seen)]
    stream = "".join(TEXTS[:10]).encode()
    assert windows(val) == [stream[i : i + 32] for i in range(len(stream) - 32)]
    assert len(val) == -(-(len(stream) - 32) // 24)
    assert not batches[0]["input_ids"].is_pinned()


def test_set_epoch_changes_the_order_of_training_only(paths):
    train, val = make(paths)
    first, again = windows(train), windows(val)
    train.set_epoch(5)
    val.set_epoch(5)
    assert windows(train) != first
    assert windows(val) == again
    train.set_epoch(0)
    assert windows(train) == first
    assert windows(make(paths, seed=9)[0]) != first


COUNT = """
import multiprocessing, psutil
from penstock import Tokenizer, create_dataloaders

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    me = psutil.Process()
    train, val = create_dataloaders(
        sys.argv[1], sys.argv[2], Tokenizer.from_pretrained("bytes"), batch_size=16, seq_length=32, num_workers=4
    )
    seen = []
    before = len(me.children(recursive=True))
    for epoch in range(2):
        for batch in train:
            seen.append(sorted(child.pid for child in me.children(recursive=True)))
    next(iter(val))
    both = len(me.children(recursive=True))
    names = {" ".join(child.cmdline()).count("penstock") > 0 for child in me.children()}
    train.close()
    val.close()
    after = [child.pid for child in me.children() if child.status() != psutil.STATUS_ZOMBIE]
    kinds = len(set(map(tuple, seen)))
    print(json.dumps([before, len(seen[0]), kinds, both, sorted(names), after, multiprocessing.get_start_method()]))
"""


def test_four_workers_are_four_processes_whatever_the_start_method_and_live_across_epochs(paths):
    psutil = pytest.importorskip("psutil")
    assert psutil.pid_exists(1)
    head = f"import json, sys; sys.path[:] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + COUNT, *map(str, paths)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    before, count, kinds, both, ours, after, method = json.loads(done.stdout)
    assert (before, count, both) == (0, 4, 8)
    assert kinds == 1, "workers were replaced during or between epochs"
    assert ours == [True]
    assert after == []
    assert method == "fork"


def test_workers_change_nothing_but_speed(paths):
    def train(**options):
        return make(paths, batch_size=64, train_transform=add_noise, **options)[0]

    variations = [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "worker_type": "thread"}]
    check_order_law(train, variations)


def test_workers_on_windows_are_refused_politely_unless_forced():
    with pytest.warns(UserWarning, match=r"num_workers=4 is taken as 0 on Windows.*force_workers"):
        assert _workers(4, None, force=False, platform="win32") == (0, "thread")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _workers(0, None, force=False, platform="win32") == (0, "thread")
        assert _workers(4, None, force=True, platform="win32") == (4, "thread")
        assert _workers(4, None, force=False, platform="linux") == (4, "process")
        assert _workers(4, "thread", force=False, platform="linux") == (4, "thread")


def test_replica_peers_read_the_same_and_data_parallel_ranks_share_the_rest(paths):
    worlds = [World.of(rank=rank, world_size=8, tp_size=2, pp_size=2) for rank in range(8)]
    loaders = [make(paths, world=world) for world in worlds]
    trained = [windows(train) for train, _ in loaders]
    assert len({len(train) for train, _ in loaders}) == len({len(val) for _, val in loaders}) == 1
    assert trained[0] == trained[1] == trained[2] == trained[3]
    assert trained[4] == trained[5] == trained[6] == trained[7]
    whole = windows(make(paths, batch_size=32, seq_length=32)[0])
    assert sorted(trained[0] + trained[4]) == sorted(whole)
    validated = [list(val) for _, val in loaders]
    assert len({len(batches) for batches in validated}) == 1
    stream = "".join(TEXTS[:10]).encode()
    assert sorted(windows(validated[0]) + windows(validated[4])) == sorted(
        stream[i : i + 32] for i in range(len(stream) - 32)
    )


def test_replica_sizes_place_a_rank_of_torchrun(paths, monkeypatch):
    def ranks_of(**options):
        found = []
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "4")
            found.append(make(paths, **options)[0].world)
        return [(world.dp_rank, world.dp_size) for world in found]

    assert ranks_of(tp_size=2) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert ranks_of(tp_size=2, pp_size=2) == [(0, 1)] * 4
    assert ranks_of() == [(rank, 4) for rank in range(4)]


def test_augmentation_is_keyed_to_the_sample_and_leaves_validation_alone(paths):
    plain, noisy = make(paths), make(paths, train_transform=add_noise)
    changed = [(a["input_ids"] != b["input_ids"]).sum(1) for a, b in zip(plain[0], noisy[0], strict=True)]
    assert torch.cat(changed).unique().tolist() == [1]
    assert windows(noisy[1]) == windows(plain[1])
    second = windows(noisy[0])
    again = make(paths, train_transform=[add_noise])[0]
    again.set_epoch(1)
    assert windows(again) == second


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 32},
        {"by_document": True, "overlap": 4, "length_bucket": 32},
        {"tokenize": "on_the_fly", "length_bucket": 8, "train_transform": add_noise},
        {"num_workers": 2, "by_document": True},
    ],
    ids=["windows", "side by side", "documents", "on the fly", "processes"],
)
def test_both_loaders_resume_at_any_batch(paths, options):
    for which in (0, 1):
        check_resume(lambda which=which: make(paths, batch_size=4, **options)[which], at=[0, 1, 3])


def test_loaders_close_within_a_second(paths):
    train, _ = make(paths, num_workers=2)
    check_close(lambda: train)


def test_by_document_batches_hold_one_text_a_row(paths):
    train, val = make(paths, by_document=True, pad_id=3, length_bucket=16)
    texts = [text.encode() for text in TEXTS]
    for batch in [*train, *val]:
        for ids, labels, mask in zip(*batch.values(), strict=True):
            row = bytes(ids[mask == 1].tolist())
            assert any(row in text for text in texts)
            assert ids[mask == 0].tolist() == [3] * int((mask == 0).sum())
            assert (labels[mask == 0] == -100).all()


def test_on_the_fly_every_document_is_one_sample_of_the_same_tokens(paths):
    train, val = make(paths, tokenize="on_the_fly", tokenizer=DictTokenizer(), batch_size=4)
    expected = sorted(text.encode()[:32] for text in TEXTS)
    batches = list(train)
    assert {batch["input_ids"].shape for batch in batches} == {torch.Size([4, 32])}
    rows = [
        bytes(row[mask == 1].tolist())
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(rows) == expected
    assert next(iter(val))["input_ids"][0].tolist() == list(TEXTS[0].encode()[:32])
    assert not list(paths[0].parent.rglob("tokens.bin")), "something was tokenized ahead"


def test_on_the_fly_length_buckets_pad_less(paths):
    lengths = np.random.default_rng(0).integers(1, 40, 200).tolist()
    long = write_jsonl(paths[0], ["water " * count for count in lengths])

    def padding(**options):
        train, _ = make((long, paths[1]), tokenize="on_the_fly", batch_size=8, seq_length=256, **options)
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in train)

    assert padding(length_bucket=8) < 0.2 * padding()


def test_options_that_do_not_exist_or_mean_nothing_are_refused(paths):
    with pytest.raises(ConfigError, match=r"no option 'strides'; did you mean 'stride'\?"):
        make(paths, strides=2)
    with pytest.raises(ConfigError, match=r"no option 'seq_len'; did you mean 'seq_length'\?"):
        create_dataloaders(*paths, BYTES, seq_len=64)
    with pytest.raises(ConfigError, match=r"no option 'xyzzy'\. Its options: by_document"):
        make(paths, xyzzy=2)
    with pytest.raises(ConfigError, match="tokenize must be one of"):
        make(paths, tokenize="later")
    with pytest.raises(ConfigError, match="stride, overlap cut token streams"):
        make(paths, tokenize="on_the_fly", stride=2, overlap=3)
    with pytest.raises(ConfigError, match="windows over a stream all have one length"):
        make(paths, length_bucket=8)
    with pytest.raises(ConfigError, match="already says where tp_size"):
        make(paths, world=World(), tp_size=2)
    with pytest.raises(ConfigError, match="num_workers must be an integer"):
        make(paths, num_workers=-1)
    with pytest.raises(ConfigError, match="batch_size must be an integer"):
        make(paths, batch_size=0)
    with pytest.raises(ConfigError, match="tokens in all"):
        make(paths, seq_length=100_000)


@pytest.mark.parametrize("tokenize", ["ahead", "on_the_fly"])
def test_a_tokenizer_may_be_given_by_its_name_or_path(paths, tmp_path, tokenize):
    path = tmp_path / "tokenizer.json"
    trained = train_tokenizer(TEXTS, 300, path)
    for given, opened in (("bytes", BYTES), (path, trained), (str(path), trained)):
        expected = make(paths, tokenizer=opened, tokenize=tokenize)
        for loader, same in zip(make(paths, tokenizer=given, tokenize=tokenize), expected, strict=True):
            assert [batch["input_ids"].tolist() for batch in loader] == [batch["input_ids"].tolist() for batch in same]


def test_one_pass_over_the_text_is_a_stride_of_the_sequence_length(paths):
    """The arithmetic of the documentation: T - L samples at every token, about T / L side by side."""
    (every, _), (once, _) = make(paths), make(paths, stride=32, drop_last=False)
    assert len(every.dataset) == len(STREAM) - 32
    assert len(once.dataset) == -(-(len(STREAM) - 1) // 32)
    targets = torch.cat([batch["labels"][batch["labels"] >= 0] for batch in once])
    assert sorted(targets.tolist()) == sorted(STREAM[1:])


def test_a_training_set_smaller_than_a_batch_says_so(paths):
    train, _ = make(paths, batch_size=5000, tokenizer=ListTokenizer())
    with pytest.raises(ConfigError, match="do not fill one global batch"):
        len(train)
    train, _ = make(paths, batch_size=5000, drop_last=False)
    assert [len(batch["labels"]) for batch in train] == [len(STREAM) - 32]
