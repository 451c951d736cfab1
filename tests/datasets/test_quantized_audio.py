"""Folders of sound as sequences of codes: what a sample is, how files are cut, and what a folder may hold."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
import soxr
import torch

from penstock import (
    BadMedia,
    ConfigError,
    ObjectChanged,
    ObjectMissing,
    QuantizedAudioDataset,
    StoreError,
    StreamingDataLoader,
)
from penstock.datasets.audio_reading import MAX_OPEN
from penstock.seeds import rng
from penstock.testing import (
    check_close,
    check_elastic,
    check_epoch_is_permutation,
    check_fetch,
    check_lanes,
    check_resume,
    check_state_size,
)
from penstock.transforms.quantize import linear_decode, linear_encode, mu_law_encode

RATE = 16_000
KINDS = {"wav": {}, "flac": {}, "ogg": {"format": "OGG", "subtype": "VORBIS"}, "mp3": {}}


def noise(frames: int, seed: int, channels: int = 1) -> np.ndarray:
    steps = rng(seed, "noise").standard_normal((frames, channels)) * np.linspace(0.05, 1, frames)[:, None]
    return (np.sin(np.cumsum(steps, axis=0)) * 0.7).astype(np.float32)


def write(path, frames: int, *, seed: int = 0, channels: int = 1, rate: int = RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = noise(frames, seed, channels)
    with soundfile.SoundFile(path, "w", rate, channels, **options) as file:
        # libsndfile's Vorbis encoder fails on much in one call.
        for start in range(0, frames, 50_000):
            file.write(data[start : start + 50_000])
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Nine files of four kinds: segments of 1,000 frames, most with a tail."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(9):
        name = list(KINDS)[number % 4]
        write(folder / f"take {number}.{name}", 4000 + 333 * number, seed=number, **KINDS[name])
    return folder


def whole(path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)


def test_x_is_y_one_frame_later_behind_the_zero_level(folder):
    dataset = QuantizedAudioDataset(folder, sample_len=1000)
    for index in (0, 3, len(dataset) - 1):
        x, y = dataset[index]
        assert x.dtype == y.dtype == torch.int64
        assert y.shape == (len(x), 1)
        assert x[0] == dataset.zero_level == 128
        assert torch.equal(x[1:], y[:-1, 0])
        assert 0 == y.min() <= y.max() == 255
    assert (dataset.d_input, dataset.d_output, dataset.l_output) == (1, 256, 1000)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize(("quantization", "encode"), [("linear", linear_encode), ("mu-law", mu_law_encode)])
def test_codes_are_those_of_each_segment_by_itself(tmp_path, bits, quantization, encode):
    path = write(tmp_path / "a.wav", 2500)
    dataset = QuantizedAudioDataset(tmp_path, bits, sample_len=1000, quantization=quantization)
    sound = whole(path)
    assert dataset.d_output == 2**bits
    for index, part in enumerate((sound[:1000], sound[1000:2000], sound[2000:])):
        x, y = dataset[index]
        assert y[:, 0].tolist() == encode(part, bits).tolist()
        assert x[0] == 2 ** (bits - 1)


def test_values_that_are_not_quantized_are_the_file_s(tmp_path):
    path = write(tmp_path / "a.wav", 2500)
    dataset = QuantizedAudioDataset(tmp_path, sample_len=1000, quantization=None, pad_len=2)
    x, y = dataset[1]
    assert x.dtype == y.dtype == torch.float32
    assert y[:, 0].numpy().tobytes() == whole(path)[1000:2000].tobytes()
    assert x[:3].tolist() == [0, 0, 0]
    assert torch.equal(x[3:], y[:-1, 0])
    assert (dataset.zero_level, dataset.d_output) == (0.0, 1)


@pytest.mark.parametrize(("name", "tolerance"), [("wav", 0), ("flac", 0), ("ogg", 0), ("mp3", 1e-6)])
@pytest.mark.parametrize("channels", [1, 2])
def test_segments_joined_are_the_whole_file(tmp_path, name, tolerance, channels):
    path = write(tmp_path / f"a.{name}", 70_123, channels=channels, **KINDS[name])
    dataset = QuantizedAudioDataset(tmp_path, sample_len=3000, quantization=None, return_type=None)
    assert len(dataset) == 24
    # In any order: nothing depends on what was read before.
    parts = {index: dataset[index] for index in rng(0, "order").permutation(24).tolist()}
    joined = torch.cat([parts[index] for index in range(24)])[:, 0].numpy()
    np.testing.assert_allclose(joined, whole(path), rtol=0, atol=tolerance or 1e-7 * (channels > 1))


@pytest.mark.parametrize(("rate", "target"), [(44_100, 16_000), (48_000, 16_000), (16_000, 44_100), (22_050, 16_000)])
@pytest.mark.parametrize("name", ["wav", "mp3"])
def test_resampled_segments_joined_are_the_file_resampled_whole(tmp_path, rate, target, name):
    path = write(tmp_path / f"a.{name}", 120_001, rate=rate, channels=2)
    want = soxr.resample(whole(path), rate, target)
    dataset = QuantizedAudioDataset(tmp_path, sample_len=2500, quantization=None, return_type=None, target_sr=target)
    assert len(dataset) == -(-len(want) // 2500)
    joined = torch.cat([dataset[index] for index in reversed(range(len(dataset)))][::-1])[:, 0].numpy()
    np.testing.assert_allclose(joined, want, rtol=0, atol=2e-6)
    one = QuantizedAudioDataset(tmp_path, quantization=None, return_type=None, target_sr=target)[0]
    np.testing.assert_allclose(one[:, 0].numpy(), want, rtol=0, atol=1e-6)


def test_stereo_is_made_mono_by_the_mean(tmp_path):
    left, right = noise(500, 1)[:, 0], noise(500, 2)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    _, y = QuantizedAudioDataset(tmp_path)[0]
    assert y[:, 0].tolist() == linear_encode((left + right) / 2).tolist()


def test_a_tail_is_kept_unless_it_is_dropped(tmp_path):
    write(tmp_path / "a.wav", 2500)
    write(tmp_path / "b.wav", 999)
    write(tmp_path / "c.wav", 1000)
    kept = QuantizedAudioDataset(tmp_path, sample_len=1000)
    assert kept.lengths.tolist() == [1000, 1000, 500, 999, 1000] == [len(x) for x, _ in kept]
    for name in ("drop_tail", "drop_last"):
        dropped = QuantizedAudioDataset(tmp_path, sample_len=1000, **{name: True})
        assert dropped.lengths.tolist() == [1000, 1000, 1000]
        assert torch.equal(dropped[2][1], kept[4][1])
    files = QuantizedAudioDataset(tmp_path)
    assert files.lengths.tolist() == [2500, 999, 1000]
    assert files.l_output is None


def test_context_is_trimmed_from_y_and_padding_put_before_x(tmp_path):
    write(tmp_path / "a.wav", 1300)
    plain_x, plain_y = QuantizedAudioDataset(tmp_path, sample_len=1000)[0]
    dataset = QuantizedAudioDataset(tmp_path, sample_len=1000, context_len=400, pad_len=3)
    x, y = dataset[0]
    assert x.tolist() == [128] * 3 + plain_x.tolist()
    assert torch.equal(y, plain_y[400:])
    # The tail has 300 frames, all of them context.
    assert [part.shape for part in dataset[1]] == [(303,), (0, 1)]


def test_a_batch_of_unequal_lengths_is_filled_up_with_what_a_loss_leaves_out(tmp_path):
    write(tmp_path / "a.wav", 2500)
    dataset = QuantizedAudioDataset(tmp_path, sample_len=1000)
    ids = np.array([2, 0])
    for samples in (dataset.fetch(ids), dataset.__getitems__(ids.tolist())):
        x, y, info = dataset.collate(samples)
        assert type(x) is type(y) is type(info["lengths"]) is type(samples[0][0])
        assert (x.shape, y.shape, info["lengths"].tolist()) == ((2, 1000), (2, 1000, 1), [500, 1000])
        assert (x[0, 500:] == 128).all()
        assert (y[0, 500:] == -100).all()
        for row, index in enumerate(ids.tolist()):
            want_x, want_y = dataset[index]
            assert x[row, : len(want_x)].tolist() == want_x.tolist()
            assert y[row, : len(want_y)].tolist() == want_y.tolist()
    plain = QuantizedAudioDataset(tmp_path, sample_len=1000, return_type=None)
    values, info = plain.collate(plain.fetch(ids))
    assert values.shape == (2, 1000, 1)
    assert (values[0, 500:] == 128).all()
    assert info["lengths"].tolist() == [500, 1000]


def test_a_batch_is_the_same_however_it_was_made(folder):
    dataset = QuantizedAudioDataset(folder, sample_len=1000, drop_tail=True, pad_len=5, context_len=10)
    ids = np.array([7, 0, 11, 7])
    at_once = dataset.collate(dataset.fetch(ids))
    singly = dataset.collate([dataset.fetch(ids[j : j + 1])[0] for j in range(4)])
    for a, b in zip((*at_once[:2], at_once[2]["lengths"]), (*singly[:2], singly[2]["lengths"]), strict=True):
        np.testing.assert_array_equal(a, b)
    for row, id_ in enumerate(ids.tolist()):
        assert at_once[0][row].tolist() == dataset[id_][0].tolist()


def test_files_come_in_natural_order_and_only_sounds_are_files(tmp_path):
    for name in ("t10.wav", "t9.WAV", "t1.flac", "b/2.wav", "b/10.wav", "b/a.ogg"):
        write(tmp_path / name, 200, format="WAV" if name.endswith("WAV") else None)
    for name in ("notes.txt", "cover.jpg", ".hidden.wav", "._t1.flac", "wav", "t1.wav.part", ".git/x.wav", "Makefile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not a sound")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "linked.wav").symlink_to(tmp_path / "t10.wav")
    dataset = QuantizedAudioDataset(tmp_path)
    names = ("b/2.wav", "b/10.wav", "b/a.ogg", "linked.wav", "t1.flac", "t9.WAV", "t10.wav")
    assert dataset.files.names == names
    assert dataset.files.path(0) == str(tmp_path / "b/2.wav")


@pytest.mark.parametrize(
    ("ratio_min", "ratio_max", "wanted"),
    [(0, 1, range(10)), (0, 0.29, range(2)), (0.3, 0.6, range(3, 6)), (0.95, 1, [9])],
)
def test_ratios_choose_a_range_of_the_files(tmp_path, ratio_min, ratio_max, wanted):
    for number in range(10):
        write(tmp_path / f"{number}.wav", 100 + number)
    dataset = QuantizedAudioDataset(tmp_path, ratio_min=ratio_min, ratio_max=ratio_max)
    assert [len(x) - 100 for x, _ in dataset] == list(wanted)


def test_indices_are_those_of_a_list(folder):
    dataset = QuantizedAudioDataset(folder, sample_len=1000)
    size = len(dataset)
    assert torch.equal(dataset[-1][1], dataset[size - 1][1])
    assert torch.equal(dataset[np.int64(-size)][1], dataset[0][1])
    for index in (size, -size - 1):
        with pytest.raises(IndexError, match=f"it has {size}"):
            dataset[index]
    for ids in ([-1], [0, size]):
        with pytest.raises(IndexError, match=f"it has {size}"):
            dataset.fetch(np.array(ids))
    assert dataset.fetch(np.array([], np.int64)) == []
    assert len(list(dataset)) == size


def garbage(path):
    path.write_bytes(b"RIFF\x10\x00\x00\x00WAVEjunk and nothing else" * 3)


def cut_off(path):
    data = write(path, 5000).read_bytes()
    path.write_bytes(data[:6000])


def no_frames(path):
    soundfile.write(path, np.zeros(0, np.float32), RATE)


def text(path):
    path.write_text('{"this": "is no sound"}')


@pytest.mark.parametrize("spoil", [garbage, cut_off, no_frames, text, lambda path: path.write_bytes(b"")])
def test_an_unreadable_file_is_named(tmp_path, spoil):
    for number in range(3):
        write(tmp_path / f"{number}.wav", 500)
    spoil(tmp_path / "7.wav")
    with pytest.raises(BadMedia, match=r"7\.wav") as caught:
        QuantizedAudioDataset(tmp_path, sample_len=100)
    assert caught.value.path == str(tmp_path / "7.wav")


def test_all_unreadable_files_are_told_at_once(tmp_path):
    for number in range(100):
        text(tmp_path / f"{number}.wav") if number % 8 == 3 else write(tmp_path / f"{number}.wav", 50)
    (tmp_path / "0.wav").unlink()
    (tmp_path / "0.wav").symlink_to(tmp_path / "gone")
    with pytest.raises(BadMedia) as caught:
        QuantizedAudioDataset(tmp_path)
    first, *lines, more, advice = str(caught.value).splitlines()
    assert first == f"14 of the 100 sound files in {tmp_path} cannot be read:"
    assert lines[0].strip() == f"there is no file {tmp_path}/0.wav"
    assert [line.split()[0] for line in lines[1:]] == [f"{tmp_path}/{number}.wav" for number in range(3, 75, 8)]
    assert more.strip() == "and 4 more"
    assert 'on_error="skip"' in advice


def test_broken_files_can_be_left_out_and_are_listed_by_reason(tmp_path):
    for number in range(8):
        write(tmp_path / f"{number}.wav", 250, seed=number)
    whole = QuantizedAudioDataset(tmp_path, sample_len=100)
    text(tmp_path / "1.wav")
    cut_off(tmp_path / "3.wav")
    no_frames(tmp_path / "4.wav")
    (tmp_path / "6.wav").unlink()
    (tmp_path / "6.wav").symlink_to(tmp_path / "gone")
    data = QuantizedAudioDataset(tmp_path, sample_len=100, on_error="skip")
    assert data.files.names == ("0.wav", "2.wav", "5.wav", "7.wav")
    assert [(one.name, one.reason) for one in data.broken] == [
        ("1.wav", "not-audio"),
        ("3.wav", "truncated"),
        ("4.wav", "empty"),
        ("6.wav", "ObjectMissing"),
    ]
    assert all(str(tmp_path / one.name) in one.message for one in data.broken)
    assert "12 samples of 4 files; 4 broken left out" in repr(data)
    wanted = [whole[index][1] for file in (0, 2, 5, 7) for index in range(3 * file, 3 * file + 3)]
    assert all(torch.equal(y, other) for (_, y), other in zip(data, wanted, strict=True))
    copy = pickle.loads(pickle.dumps(data))
    assert (copy.broken, copy.on_error, copy.fingerprint) == (data.broken, "skip", data.fingerprint)


def test_the_fingerprint_says_which_files_are_left_and_not_how_they_were_chosen(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.wav", 250, seed=number)
    data, strict = (QuantizedAudioDataset(tmp_path, on_error=on_error) for on_error in ("skip", "raise"))
    assert data.fingerprint == strict.fingerprint
    assert data.broken == strict.broken == ()
    text(tmp_path / "1.wav")
    skipped = QuantizedAudioDataset(tmp_path, on_error="skip").fingerprint
    assert skipped != data.fingerprint
    (tmp_path / "1.wav").unlink()
    assert QuantizedAudioDataset(tmp_path).fingerprint == skipped


def test_a_range_of_ratios_is_of_all_files_broken_or_not(tmp_path):
    for number in range(4):
        write(tmp_path / f"{number}.wav", 250)
    text(tmp_path / "0.wav")
    assert QuantizedAudioDataset(tmp_path, ratio_max=0.5, on_error="skip").files.names == ("1.wav",)
    with pytest.raises(BadMedia, match=r"none of the 1 sound files in .*:\n  .*/0\.wav"):
        QuantizedAudioDataset(tmp_path, ratio_max=0.25, on_error="skip")


def test_a_file_that_others_may_be_able_to_read_is_never_left_out(tmp_path):
    write(tmp_path / "0.wav", 250)
    text(tmp_path / "1.wav")
    (tmp_path / "2.wav").symlink_to("/proc/self/mem")  # opens, and fails to be read: as a bad disk does
    with pytest.raises(StoreError, match=r"^1 of the 3 sound files in .*:\n  /.*2\.wav cannot be read") as caught:
        QuantizedAudioDataset(tmp_path, on_error="skip")
    assert not isinstance(caught.value, ObjectMissing)


def test_a_loader_skips_what_fails_to_decode_where_the_dataset_skips(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.flac", 40_000, seed=number)
    data = (tmp_path / "1.flac").read_bytes()
    (tmp_path / "1.flac").write_bytes(data[: len(data) // 2])  # the header is whole
    dataset = QuantizedAudioDataset(tmp_path, sample_len=10_000, on_error="skip")
    assert len(dataset) == 12
    with StreamingDataLoader(dataset, 4, num_workers=0) as loader:
        rows = sum(len(y) for _, y, _ in loader)
        assert 8 <= rows < 12
        assert sum(loader.stats.skipped.values()) == 12 - rows
    with pytest.raises(ConfigError, match="on_error='substitute' contradicts QuantizedAudioDataset's on_error='skip'"):
        StreamingDataLoader(dataset, 4, on_error="substitute")


def test_values_that_are_not_finite_are_refused_where_they_are_read(tmp_path):
    data = noise(3000, 0)[:, 0]
    data[1234] = np.nan
    soundfile.write(tmp_path / "a.wav", data, RATE, subtype="FLOAT")
    dataset = QuantizedAudioDataset(tmp_path, sample_len=1000)
    assert len(dataset.fetch(np.array([0, 2]))) == 2
    with pytest.raises(BadMedia, match=r"a\.wav holds values that are NaN or infinite, the first one in frame 1,234"):
        dataset.fetch(np.arange(3))


def test_a_bad_segment_is_left_out_and_the_others_of_its_batch_are_not(tmp_path):
    data = noise(5000, 0)[:, 0]
    data[2500] = np.inf
    soundfile.write(tmp_path / "a.wav", data, RATE, subtype="FLOAT")
    dataset = QuantizedAudioDataset(tmp_path, sample_len=1000)
    with StreamingDataLoader(dataset, 5, num_workers=0, on_error="skip") as loader:
        x, y, info = next(iter(loader))
        assert list(loader.batch_info.skipped) == [2]
    assert info["lengths"].tolist() == [1000] * 4
    assert [row.tolist() for row in y] == [dataset[index][1].tolist() for index in (0, 1, 3, 4)]
    assert (x[:, 0] == 128).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits must be an integer from 1 to 24, got 0"),
        ({"bits": 8.0}, "bits"),
        ({"sample_len": 0}, "sample_len must be an integer >= 1, got 0"),
        ({"sample_len": 10.5}, "sample_len"),
        ({"on_error": "substitute"}, "on_error must be one of 'raise', 'skip'; got 'substitute'"),
        ({"target_sr": 0}, "target_sr"),
        ({"quantization": "mulaw"}, "quantization must be one of 'linear', 'mu-law', None; got 'mulaw'"),
        ({"return_type": "plain"}, "return_type must be one of 'autoregressive', None"),
        ({"ratio_min": 0.5, "ratio_max": 0.5}, "ratio_min must be below ratio_max"),
        ({"ratio_max": 1.5}, "ratio_max must be a number from 0 to 1, got 1.5"),
        ({"ratio_min": -0.1}, "ratio_min"),
        ({"ratio_min": "half"}, "ratio_min"),
        ({"ratio_max": 0.05}, "no file of the 9"),
        ({"context_len": -1}, "context_len"),
        ({"context_len": 1000, "sample_len": 1000}, "context_len=1000 leaves nothing"),
        ({"pad_len": -1}, "pad_len"),
        ({"pad_len": 4, "return_type": None}, 'pad_len=4 is for return_type="autoregressive"'),
        ({"drop_tail": True, "drop_last": False}, "drop_last is another name of drop_tail"),
        ({"drop_tail": 1}, "drop_tail must be one of True, False; got 1"),
        ({"sample_len": 10**9, "drop_tail": True}, "none of the 9 files in .* has 1,000,000,000 frames"),
    ],
)
def test_what_can_not_work_is_refused_by_name(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        QuantizedAudioDataset(folder, **options)


def test_a_folder_without_sounds_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no sound")
    with pytest.raises(ConfigError, match=r"has no sound files, in it or below: names that end in \.aif"):
        QuantizedAudioDataset(tmp_path)
    with pytest.raises(ConfigError, match=r"notes\.txt is a file: give the folder it is in"):
        QuantizedAudioDataset(tmp_path / "notes.txt")
    with pytest.raises(ObjectMissing, match=r"there is no folder .*missing"):
        QuantizedAudioDataset(tmp_path / "missing")
    with pytest.raises(ConfigError, match="a folder on this machine"):
        QuantizedAudioDataset("s3://bucket/sounds")


def test_a_file_that_became_another_is_not_taken_for_what_it_was(tmp_path):
    write(tmp_path / "a.wav", 3000)
    dataset = QuantizedAudioDataset(tmp_path, sample_len=1000)
    write(tmp_path / "a.wav", 2000)
    with pytest.raises(ObjectChanged, match=r"a\.wav has 2,000 frames at 16000 Hz; .* it had 3,000 at 16000 Hz"):
        dataset[0]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ObjectMissing, match=r"a\.wav"):
        dataset[0]


def test_a_failing_sample_is_told_by_its_file_and_frames(tmp_path):
    write(tmp_path / "a.wav", 3000)
    dataset = QuantizedAudioDataset(tmp_path, sample_len=1000)
    (tmp_path / "a.wav").unlink()
    with StreamingDataLoader(dataset, 3, num_workers=0) as loader, pytest.raises(Exception, match="frames") as caught:
        next(iter(loader))
    assert f"sample 0 (frames [0, 1,000) of {tmp_path / 'a.wav'})" in str(caught.value)


def test_the_fingerprint_says_what_the_samples_are(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    own = QuantizedAudioDataset(folder, sample_len=1000).fingerprint
    assert QuantizedAudioDataset(copy, sample_len=1000).fingerprint == own
    others = [
        QuantizedAudioDataset(copy, **{"sample_len": 1000, **other}).fingerprint
        for other in (
            {"bits": 9},
            {"sample_len": 999},
            {"quantization": "mu-law"},
            {"target_sr": 8000},
            {"pad_len": 1},
            {"ratio_max": 0.5},
        )
    ]
    (copy / "take 0.wav").rename(copy / "take 00.wav")
    others.append(QuantizedAudioDataset(copy, sample_len=1000).fingerprint)
    assert len({own, *others}) == len(others) + 1


def test_a_pickled_dataset_takes_its_headers_along(folder, tmp_path):
    dataset = QuantizedAudioDataset(folder, sample_len=1000)
    want = dataset[5]
    travelled = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 4000
    assert all(map(torch.equal, travelled[5], want))
    assert travelled.fingerprint == dataset.fingerprint
    assert repr(travelled) == repr(dataset)


def test_fetch_depends_on_nothing_but_its_ids(folder):
    check_fetch(QuantizedAudioDataset(folder, sample_len=1000, drop_tail=True))
    check_fetch(QuantizedAudioDataset(folder, sample_len=1000, target_sr=11_025, return_type=None))
    check_fetch(QuantizedAudioDataset(folder, quantization=None))


def test_batches_depend_on_no_worker_lane_or_latency(folder):
    dataset = QuantizedAudioDataset(folder, sample_len=1000, quantization="mu-law")
    check_lanes(dataset, workers=(0, 2), prefetch=(2,), batch_size=5, shuffle=True, seed=3, epochs=2)


def test_a_loader_of_sounds_keeps_the_laws(folder):
    dataset = QuantizedAudioDataset(folder, sample_len=1000)

    def loader(world=None, batch_size=4):
        return StreamingDataLoader(dataset, batch_size, shuffle=True, seed=1, num_workers=0, world=world)

    check_epoch_is_permutation(loader, len(dataset), world_sizes=(1, 3))
    check_elastic(loader, len(dataset), saved_on=(1, 2), resumed_on=(3,))
    check_resume(loader, at=(0, 3))
    with loader() as one:
        check_state_size(one)
    check_close(lambda: StreamingDataLoader(dataset, 4, shuffle=True, num_workers=2))


def test_segments_of_like_length_can_be_put_together(tmp_path):
    for number in range(40):
        write(tmp_path / f"{number}.wav", 100 + 50 * (number % 7))
    dataset = QuantizedAudioDataset(tmp_path)
    with StreamingDataLoader(dataset, 5, shuffle=True, length_bucket=5, num_workers=0) as loader:
        spread = [int(info["lengths"].max() - info["lengths"].min()) for _, _, info in loader]
    assert np.mean(spread) <= 60


def test_threads_that_read_the_same_files_do_not_mix_them_up(folder):
    dataset = QuantizedAudioDataset(folder, sample_len=1000)
    want = [sample[1] for sample in dataset.fetch(np.arange(len(dataset)))]
    wrong = []

    def read(seed: int) -> None:
        for id_ in rng(seed, "thread").integers(0, len(dataset), 150).tolist():
            if not np.array_equal(dataset.fetch(np.array([id_]))[0][1], want[id_]):
                wrong.append(id_)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_reader_has_files_of_its_own(folder):
    dataset = QuantizedAudioDataset(folder, sample_len=1000)
    want = [dataset[index] for index in range(len(dataset))]  # Every file is open now.
    loader = torch.utils.data.DataLoader(
        dataset, 3, num_workers=2, collate_fn=dataset.collate, multiprocessing_context="fork"
    )
    for _ in range(3):
        found = [(x, y) for batch in loader for x, y in zip(batch[0], batch[1], strict=True)]
        mine = [dataset[index] for index in range(len(dataset))]
        for (x, y), (want_x, want_y), own in zip(found, want, mine, strict=True):
            assert torch.equal(x[: len(want_x)], want_x)
            assert torch.equal(y[: len(want_y)], want_y)
            assert torch.equal(own[0], want_x)


def test_only_so_many_files_stay_open_and_closing_leaves_none(tmp_path):
    for number in range(MAX_OPEN + 30):
        write(tmp_path / f"{number}.wav", 60, seed=number)

    def open_files() -> int:
        held = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
        return sum(os.path.realpath(link).startswith(str(tmp_path)) for link in held)

    dataset = QuantizedAudioDataset(tmp_path)
    assert open_files() == 0
    want = [y for _, y in dataset.fetch(np.arange(len(dataset)))]
    assert open_files() == MAX_OPEN
    dataset.close()
    assert open_files() == 0
    assert np.array_equal(dataset.fetch(np.array([5]))[0][1], want[5])
    del dataset
    assert open_files() == 0


COUNT = """
import re, sys
import numpy as np
from penstock import QuantizedAudioDataset

def bytes_read():
    with open("/proc/self/io") as file:
        return int(re.search(r"rchar: (\\d+)", file.read())[1])

dataset = QuantizedAudioDataset(sys.argv[1], sample_len=16_000)
dataset.fetch(np.array([1]))
before = bytes_read()
for id_ in (len(dataset) // 2, len(dataset) - 3, 7, 200):
    dataset.fetch(np.array([id_]))
print((bytes_read() - before) // 4)
"""


@pytest.mark.parametrize(("name", "allowed"), [("wav", 40_000), ("flac", 250_000), ("ogg", 250_000), ("mp3", 40_000)])
def test_a_segment_costs_its_own_bytes_and_not_the_file_s(tmp_path, name, allowed):
    path = write(tmp_path / f"long.{name}", 16_000 * 400, **KINDS[name])
    told = subprocess.run(
        [sys.executable, "-c", COUNT, tmp_path], capture_output=True, text=True, check=True, timeout=120
    )
    count = int(told.stdout)
    print(f"{name}: {count:,} bytes a segment of a file of {path.stat().st_size:,}")
    assert 1000 < count < allowed < path.stat().st_size / 4


def test_sound_comes_back_from_its_codes(tmp_path):
    path = write(tmp_path / "a.wav", 1000)
    _, y = QuantizedAudioDataset(tmp_path, bits=16)[0]
    sound = whole(path)
    scaled = 2 * (sound - sound.min()) / (sound.max() - sound.min() + 1e-6) - 1
    np.testing.assert_allclose(linear_decode(y[:, 0], 16).numpy(), scaled, rtol=0, atol=2.02 / 2**16)
