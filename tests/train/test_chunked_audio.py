"""Folders of sound in rounds are the same samples as without."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from penstock import (
    BadMedia,
    ChunkedQuantizedAudioDataset,
    ChunkedQuantizedAutoregressiveAudio,
    ChunkedSequenceDataset,
    ChunkedTrainingMixin,
    ConfigError,
    QuantizedAudioDataset,
    QuantizedAutoregressiveAudio,
    StreamingDataLoader,
    World,
)

soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten files of 90 frames: three segments of 30, or two of 40 and one of 10."""
    home = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(3)
    for number in range(10):
        soundfile.write(home / f"{number}.wav", rng.uniform(-1, 1, 90), 8000, subtype="FLOAT")
    return home


def rows(batch) -> list[tuple[int, ...]]:
    """The inputs of a batch, without what fills them up."""
    x, _, info = batch
    return [tuple(np.asarray(row)[:length].tolist()) for row, length in zip(x, info["lengths"].tolist(), strict=True)]


@pytest.mark.parametrize("sample_len", [30, 40])
def test_rounds_of_a_folder_are_its_segments_once_a_cycle(folder, sample_len):
    data = ChunkedQuantizedAudioDataset(folder, sample_len=sample_len, chunk_size=4)
    plain = QuantizedAudioDataset(folder, sample_len=sample_len)
    loader = data.dataloader(batch_size=2, shuffle=True, seed=1)
    assert (len(loader), loader.total_chunks) == (4, 4)
    seen = [row for _ in range(4) for batch in loader for row in rows(batch)]
    wanted = sorted(tuple(x.tolist()) for x, _ in (plain[index] for index in range(len(plain))))
    assert len(wanted) == 30
    assert sorted(seen[:30]) == wanted
    assert data.fingerprint == plain.fingerprint


def test_batches_are_the_same_with_rounds_and_without(folder):
    settings = {"sample_len": 40, "pad_len": 3, "context_len": 5}
    chunked = ChunkedQuantizedAudioDataset(folder, chunk_size=15, **settings).dataloader(batch_size=2)
    plain = ChunkedQuantizedAudioDataset(folder, **settings).dataloader(batch_size=2)
    assert type(plain) is DataLoader
    for (x, y, info), (x1, y1, info1) in zip(chunked, plain, strict=True):
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x, x1)
        assert torch.equal(y, y1)
        assert info["lengths"].tolist() == info1["lengths"].tolist()


def test_three_parts_in_rounds_of_two_sizes(folder):
    data = ChunkedQuantizedAutoregressiveAudio(
        folder, sample_len=30, train_percentage=0.6, train_chunk_size=3, val_chunk_size=1, batch_size=3, seed=4
    )
    assert isinstance(data, ChunkedSequenceDataset)
    assert isinstance(data, QuantizedAutoregressiveAudio)
    assert (data.d_input, data.d_output, data.l_output) == (1, 256, 30)
    train, val, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    # Of ten files six, two and two: eighteen, six and six segments.
    assert [(len(part), part.total_chunks) for part in (train, val, test)] == [(3, 2), (1, 2), (2, 1)]
    plain = QuantizedAutoregressiveAudio(folder, sample_len=30, train_percentage=0.6)
    plain.setup()
    for loader, part, rounds in (
        (train, plain.dataset_train, 2),
        (val, plain.dataset_val, 2),
        (test, plain.dataset_test, 1),
    ):
        seen = [row for _ in range(rounds) for batch in loader for row in rows(batch)]
        assert sorted(seen) == sorted(tuple(part[index][0].tolist()) for index in range(len(part)))


def test_without_sizes_the_parts_have_torchs_loaders_with_tails_filled_up(folder):
    data = ChunkedQuantizedAutoregressiveAudio(folder, sample_len=40, batch_size=3, bits=4)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [type(loader) for loader in loaders] == [DataLoader] * 3
    x, y, info = next(iter(loaders[1]))
    assert info["lengths"].tolist() == [40, 40, 10]
    assert (x[2, 10:] == 8).all()
    assert (y[2, 10:] == -100).all()


def test_ranks_share_the_folder(folder):
    seen = []
    for rank in range(2):
        place = World(dp_rank=rank, dp_size=2)
        data = ChunkedQuantizedAutoregressiveAudio(
            folder, sample_len=30, train_percentage=0.6, val_chunk_size=1, batch_size=3, world=place
        )
        seen += [row for batch in data.train_dataloader() for row in rows(batch)]
    assert len(seen) == len(set(seen)) == 18


def test_a_module_trains_on_sound_as_its_configuration_says(folder):
    class Net(ChunkedTrainingMixin, torch.nn.Module):
        def __init__(self, config):
            super().__init__(config)
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))

        def training_step(self, batch, batch_idx):
            x, y, _ = batch
            return torch.nn.functional.cross_entropy(self.layers(x).flatten(0, 1), y.flatten())

        validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    model = Net({"train": {"train_chunk_size": 4}})
    data = ChunkedQuantizedAutoregressiveAudio(folder, bits=4, sample_len=40, batch_size=4)
    model.setup_chunked_training(data)
    found = [model.train_epoch_with_chunking() for _ in range(4)]
    assert [metrics["round"] for metrics in found] == [0, 1, 2, 3]
    assert found[-1]["train_loss"] < found[0]["train_loss"]
    assert len(model.val_dataloader()) == 1


def test_broken_files_are_left_out_of_rounds_as_well(tmp_path, folder):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "3.wav").write_bytes(b"no sound")
    whole = ChunkedQuantizedAudioDataset(tmp_path, sample_len=30, chunk_size=9, on_error="skip")
    assert [one.name for one in whole.broken] == ["3.wav"]
    loader = whole.dataloader(batch_size=3)
    assert len({row for batch in loader for row in rows(batch)}) == 27
    with pytest.raises(ConfigError, match="contradicts ChunkedQuantizedAudioDataset's on_error='skip'"):
        whole.dataloader(batch_size=3, on_error="substitute")
    parts = ChunkedQuantizedAutoregressiveAudio(tmp_path, sample_len=30, train_chunk_size=2, on_error="skip")
    assert sum(len(batch[0]) for batch in parts.train_dataloader(batch_size=4)) == 8
    assert [one.name for one in parts.broken] == ["3.wav"]
    with pytest.raises(BadMedia, match=r"3\.wav"):
        ChunkedQuantizedAutoregressiveAudio(tmp_path, sample_len=30, train_chunk_size=2).train_dataloader()


def test_a_size_survives_the_way_to_another_process_and_a_wrong_one_is_refused(folder):
    data = pickle.loads(pickle.dumps(ChunkedQuantizedAudioDataset(folder, sample_len=30, chunk_size=2)))
    assert len(data.dataloader(batch_size=2)) == 2
    for value in (0, -1, 2.5, True, 2**62 + 1):
        with pytest.raises(ConfigError, match=r"^chunk_size must be an integer from 1 to"):
            ChunkedQuantizedAudioDataset(folder, chunk_size=value)
        with pytest.raises(ConfigError, match=r"^val_chunk_size must be an integer from 1 to"):
            ChunkedQuantizedAutoregressiveAudio(folder, val_chunk_size=value)


def test_an_argument_that_is_not_there_is_refused_by_the_class_that_was_given_it(folder):
    with pytest.raises(
        ConfigError, match=r"^ChunkedQuantizedAutoregressiveAudio takes no quantisation; .* quantization\?"
    ):
        ChunkedQuantizedAutoregressiveAudio(folder, quantisation="mu-law")


def test_a_part_that_setup_has_not_made_yet_says_so(folder):
    data = QuantizedAutoregressiveAudio(folder, sample_len=30)
    with pytest.raises(ConfigError, match=r"dataset is None, .* setup\(\) makes it"):
        StreamingDataLoader(data.dataset_train, 2)
    data.setup()
    assert len(StreamingDataLoader(data.dataset_train, 2)) > 0
