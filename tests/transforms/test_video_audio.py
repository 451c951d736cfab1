"""Videos with their sound: both begin at the same time, to the sample, and silence stands in for what is not there."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from media_subjects import RATE, sound, write_sound, write_video
from penstock.errors import BadMedia, ConfigError
from penstock.transforms.audio import DecodeAudio
from penstock.transforms.chain import Chain
from penstock.transforms.video import DecodeVideo
from penstock.transforms.video_audio import DecodeVideoAudio
from penstock.transforms.video_presets import joint_video_audio_pipeline, text_to_video_pipeline

TIMES = list(range(0, 4000, 40))
VIDEO = DecodeVideo("mp4", frames=10, fps=10, offset="at")
AUDIO = DecodeAudio("mp4", "sound", sample_rate=RATE)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    return {
        "both": write_video(folder / "both.mp4", TIMES, data=sound(4.0)),
        "late": write_video(folder / "late.mp4", [time + 1500 for time in TIMES], data=sound(6.0)),
        "short": write_video(folder / "short.mp4", TIMES, data=sound(2.0)),
        "mute": write_video(folder / "mute.mp4", TIMES),
        "wav": write_sound(folder / "sound.wav", sound(4.0)),
    }


def sound_of(path) -> np.ndarray:
    """All the sound of a file, decoded from its beginning: float32 [channels, frames]."""
    return DecodeAudio().read(path).data


@pytest.mark.parametrize("at", [0.0, 0.5, 1.23, 2.9])
def test_the_sound_in_a_video_begins_with_the_clip(files, at):
    sample = DecodeVideoAudio(VIDEO, AUDIO)({"mp4": str(files["both"]), "at": at})
    start = round(at * RATE)
    np.testing.assert_array_equal(sample["sound"], sound_of(files["both"])[:, start : start + RATE])
    np.testing.assert_array_equal(sample["mp4"], VIDEO.read(files["both"], at).data)
    assert sample["sound_frames"] == RATE
    assert sample["sound_start"] == start
    assert sample["mp4_start"] == at


def test_streams_that_begin_at_different_times_stay_together(files):
    sample = DecodeVideoAudio(VIDEO, AUDIO)({"mp4": str(files["late"]), "at": 1.0})
    start = round(2.5 * RATE)
    np.testing.assert_array_equal(sample["sound"], sound_of(files["late"])[:, start : start + RATE])


def test_what_a_sound_does_not_reach_is_silence(files):
    sample = DecodeVideoAudio(VIDEO, AUDIO)({"mp4": str(files["short"]), "at": 1.5})
    assert sample["sound"].shape == (2, RATE)
    assert sample["sound_frames"] == RATE // 2
    np.testing.assert_array_equal(sample["sound"][:, : RATE // 2], sound_of(files["short"])[:, -RATE // 2 :])
    assert not sample["sound"][:, RATE // 2 :].any()
    after = DecodeVideoAudio(VIDEO, AUDIO)({"mp4": str(files["short"]), "at": 2.5})
    assert after["sound_frames"] == 0
    assert not after["sound"].any()


def test_a_sound_that_ends_before_the_clip_begins_is_a_missing_one(files, tmp_path):
    write_sound(tmp_path / "brief.wav", sound(1.0))
    beside = {"mp4": str(files["mute"]), "at": 1.5, "wav": str(tmp_path / "brief.wav")}
    inside = {"mp4": str(files["short"]), "at": 2.5}
    for audio, sample in ((AUDIO, inside), (DecodeAudio("wav", "sound", sample_rate=RATE), beside)):
        assert not DecodeVideoAudio(VIDEO, audio)(sample)["sound"].any()
        nothing = DecodeVideoAudio(VIDEO, audio, "none")(sample)
        assert (nothing["sound"], nothing["sound_frames"]) == (None, None)
        with pytest.raises(BadMedia) as caught:
            DecodeVideoAudio(VIDEO, audio, "error")(sample)
        assert caught.value.reason == "too-short"


def test_the_sound_may_be_in_a_file_of_its_own(files):
    both = DecodeVideoAudio(VIDEO, DecodeAudio("wav", sample_rate=RATE))
    for video in ("mute", "both", "late"):
        sample = both({"mp4": str(files[video]), "wav": files["wav"].read_bytes(), "at": 1.2})
        want, _ = soundfile.read(files["wav"], start=round(1.2 * RATE), frames=RATE, dtype="float32")
        np.testing.assert_array_equal(sample["wav"], want.T)


def test_a_video_without_sound_is_silent_or_has_none_or_is_refused(files):
    sample = {"mp4": str(files["mute"]), "at": 0.0, "wav": None}
    for audio in (AUDIO, DecodeAudio("wav", "sound", sample_rate=RATE)):
        silent = DecodeVideoAudio(VIDEO, audio)(sample)
        assert silent["sound"].shape == (2, RATE)
        assert not silent["sound"].any()
        assert silent["sound_frames"] == 0
        nothing = DecodeVideoAudio(VIDEO, audio, "none")(sample)
        assert nothing["sound"] is None
        assert nothing["sound_frames"] is None
        assert nothing["mp4"].shape == (10, 64, 96, 3)
        with pytest.raises(BadMedia) as caught:
            DecodeVideoAudio(VIDEO, audio, "error")(sample)
        assert caught.value.reason == "no-audio"


def test_a_damaged_sound_is_no_missing_one(files):
    both = DecodeVideoAudio(VIDEO, DecodeAudio("wav", sample_rate=RATE))
    with pytest.raises(BadMedia) as caught:
        both({"mp4": str(files["mute"]), "wav": files["wav"].read_bytes()[:1000], "at": 0.0})
    assert caught.value.reason == "truncated"


def test_no_video_is_no_sound():
    sample = DecodeVideoAudio(VIDEO, AUDIO)({"mp4": None, "at": 0.0})
    assert {name for name, value in sample.items() if value is None} == set(sample) - {"at"}


def test_options_that_do_not_go_together_are_refused():
    fps = DecodeVideo("mp4", fps=8)
    for video, audio in (
        (fps, DecodeAudio("mp4", sample_rate=16_000)),
        (fps, DecodeAudio("wav", sample_rate=16_000, crop="max_mean", seconds=1)),
        (fps, DecodeAudio("wav", sample_rate=16_000, offset=1.0)),
        (fps, DecodeAudio("wav")),
        (DecodeVideo("mp4"), DecodeAudio("wav", sample_rate=16_000)),
    ):
        with pytest.raises(ConfigError):
            DecodeVideoAudio(video, audio)
    with pytest.raises(ConfigError):
        DecodeVideoAudio(fps, DecodeAudio("wav", sample_rate=16_000), "quiet")
    assert DecodeVideoAudio(fps, DecodeAudio("wav"), "none").missing == "none"


def test_the_joint_pipeline_gives_clips_of_one_shape(files):
    chain = Chain(joint_video_audio_pipeline(frames=4, fps=8, size=32), seed=1)
    whole = {name: DecodeAudio(sample_rate=16_000, mono=True).read(files[name]).data for name in ("both", "late")}
    starts = set()
    for id_ in range(6):
        for name in ("both", "late", "mute"):
            sample = chain.one({"video": str(files[name])}, 0, id_)
            assert sample["video"].shape == (4, 32, 32, 3)
            assert sample["audio"].shape == (1, 8000)
            starts.add(sample["video_start"])
            if name != "mute":
                start = sample["audio_start"]
                np.testing.assert_allclose(sample["audio"], whole[name][:, start : start + 8000], atol=1e-5)
                late_s = 1.5 if name == "late" else 0
                assert abs(start / 16_000 - late_s - sample["video_start"]) < 1e-4
    assert len(starts) > 5


def test_the_text_pipeline_draws_a_caption_for_the_clip(files):
    chain = Chain(text_to_video_pipeline("mp4", text_field="captions", frames=4, size=32), seed=1)
    drawn = set()
    for id_ in range(10):
        sample = chain.one({"mp4": str(files["mute"]), "captions": ["a bar", "a ground"]}, 0, id_)
        assert sample["mp4"].shape == (4, 32, 32, 3)
        drawn.add(sample["captions"])
    assert drawn == {"a bar", "a ground"}
    with pytest.raises(ConfigError, match="both"):
        text_to_video_pipeline("x", text_field="x")
