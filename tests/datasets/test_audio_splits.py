"""A folder of sounds in three parts: every file is in one of them, and none of them is empty."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from penstock import BadMedia, ConfigError, ObjectMissing, QuantizedAutoregressiveAudio
from penstock.datasets.audio_splits import split_counts


def write_files(folder, count: int) -> None:
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", np.linspace(-0.5, 0.5, 250 + number), 8000)


@pytest.mark.parametrize(
    ("count", "share", "wanted"),
    [
        (100, 0.88, (88, 6, 6)),
        (50, 0.88, (44, 3, 3)),
        (25, 0.88, (22, 1, 2)),
        (9, 0.88, (7, 1, 1)),
        (8, 0.88, (6, 1, 1)),
        (4, 0.88, (2, 1, 1)),
        (3, 0.88, (1, 1, 1)),
        (3, 0.01, (1, 1, 1)),
        (100, 0.29, (29, 35, 36)),
        (1000, 0.999, (998, 1, 1)),
    ],
)
def test_half_of_the_rest_is_for_validation_and_half_for_testing(count, share, wanted):
    train, val = split_counts(count, share, "folder")
    assert (train, val, count - train - val) == wanted


@pytest.mark.parametrize("count", [3, 7, 25, 34])
def test_every_file_is_in_one_part_in_natural_order(tmp_path, count):
    write_files(tmp_path, count)
    data = QuantizedAutoregressiveAudio(tmp_path, sample_len=100)
    assert data.dataset_train is data.dataset_val is data.dataset_test is None
    data.setup()
    parts = (data.dataset_train, data.dataset_val, data.dataset_test)
    assert [name for part in parts for name in part.files.names] == [f"{number}.wav" for number in range(count)]
    train, val = split_counts(count, 0.88, "folder")
    assert [len(part.files.names) for part in parts] == [train, val, count - train - val]
    assert len({part.fingerprint for part in parts}) == 3
    data.setup()
    assert data.dataset_train is parts[0]


def test_all_three_parts_are_made_alike(tmp_path):
    write_files(tmp_path, 4)
    data = QuantizedAutoregressiveAudio(
        tmp_path,
        bits=4,
        sample_len=100,
        train_percentage=0.5,
        quantization="mu-law",
        drop_tail=True,
        target_sr=4000,
        context_len=10,
        pad_len=5,
    )
    assert (data.d_input, data.d_output, data.l_output) == (1, 16, 100)
    data.setup()
    for part in (data.dataset_train, data.dataset_val, data.dataset_test):
        x, y = part[0]
        assert (x.shape, y.shape) == ((105,), (90, 1))
        assert x[:6].tolist() == [8] * 6
        assert set(part.lengths.tolist()) == {100}
        assert (part.d_output, part.l_output) == (16, 100)


def test_fewer_files_than_parts_are_refused(tmp_path):
    write_files(tmp_path, 2)
    with pytest.raises(ConfigError, match="has 2 sound files, and training, validation and test need one each"):
        QuantizedAutoregressiveAudio(tmp_path).setup()
    (tmp_path / "1.wav").unlink()
    with pytest.raises(ConfigError, match="has 1 sound file, "):
        QuantizedAutoregressiveAudio(tmp_path).setup()
    (tmp_path / "0.wav").unlink()
    with pytest.raises(ConfigError, match="has no sound files"):
        QuantizedAutoregressiveAudio(tmp_path).setup()
    with pytest.raises(ObjectMissing, match="missing"):
        QuantizedAutoregressiveAudio(tmp_path / "missing").setup()


def test_a_setup_that_fails_may_be_tried_again(tmp_path):
    write_files(tmp_path, 5)
    (tmp_path / "4.wav").write_bytes(b"no sound")
    data = QuantizedAutoregressiveAudio(tmp_path, sample_len=100)
    for _ in range(2):
        with pytest.raises(BadMedia, match=r"4\.wav"):
            data.setup()
        assert data.dataset_train is None
    soundfile.write(tmp_path / "4.wav", np.linspace(-0.5, 0.5, 300), 8000)
    data.setup()
    assert data.dataset_test.files.names == ("4.wav",)


def test_broken_files_of_all_parts_are_told_at_once_or_left_out_of_their_parts(tmp_path):
    write_files(tmp_path, 25)
    for number in (2, 22, 24):
        (tmp_path / f"{number}.wav").write_bytes(b"no sound")
    with pytest.raises(BadMedia, match=r"^3 of the 25 sound files(?s:.*)/2\.wav(?s:.*)/22\.wav(?s:.*)/24\.wav"):
        QuantizedAutoregressiveAudio(tmp_path, sample_len=100).setup()
    data = QuantizedAutoregressiveAudio(tmp_path, sample_len=100, on_error="skip")
    with pytest.raises(BadMedia, match=r"^none of the 1 sound files(?s:.*)/22\.wav"):  # all there is for validation
        data.setup()
    soundfile.write(tmp_path / "22.wav", np.linspace(-0.5, 0.5, 272), 8000)
    data.setup()
    parts = (data.dataset_train, data.dataset_val, data.dataset_test)
    assert [name for part in parts for name in part.files.names] == [f"{n}.wav" for n in range(25) if n not in (2, 24)]
    assert [part.files.names[0] for part in parts] == ["0.wav", "22.wav", "23.wav"]  # where they were with all whole
    assert [[one.name for one in part.broken] for part in parts] == [["2.wav"], [], ["24.wav"]]
    assert [(one.name, one.reason) for one in data.broken] == [("2.wav", "not-audio"), ("24.wav", "not-audio")]
    assert {part.on_error for part in parts} == {"skip"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_percentage": 88}, "train_percentage, 0.88 for 88 %, must be a number above 0 and below 1, got 88"),
        ({"train_percentage": 0}, "train_percentage"),
        ({"train_percentage": 1.0}, "train_percentage"),
        ({"train_percentage": "most"}, "train_percentage, 0.88 for 88 %, must be a number"),
        ({"bits": 0}, "bits"),
        ({"on_error": "ignore"}, "on_error must be one of 'raise', 'skip'; got 'ignore'"),
        ({"sample_len": -1}, "sample_len"),
        ({"quantization": "a-law"}, "quantization"),
        ({"drop_tail": True, "drop_last": False}, "drop_last"),
    ],
)
def test_what_can_not_work_is_refused_before_any_file_is_read(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        QuantizedAutoregressiveAudio(tmp_path / "missing", **options)
