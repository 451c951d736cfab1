"""Sounds out of files: the right frames, at the right rate, and bad files that say what is wrong with them."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
import soundfile
import soxr

from media_subjects import RATE, sound, write_aac, write_sound
from penstock.errors import BadMedia, ConfigError, ObjectMissing
from penstock.seeds import rng
from penstock.store.ranged_file import open_file
from penstock.transforms.audio import CROPS, DecodeAudio, audio_pipeline
from penstock.transforms.audio_source import open_audio
from penstock.transforms.chain import Chain

FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac")


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    data = sound()
    files = {name: folder / f"sound.{name}" for name in FORMATS}
    for name in ("wav", "flac", "mp3"):
        write_sound(files[name], data)
    write_sound(files["ogg"], data, format="OGG", subtype="VORBIS")
    write_sound(files["opus"], data, rate=48_000, format="OGG", subtype="OPUS")
    write_aac(files["m4a"], data)
    write_aac(files["aac"], data, format_="adts")
    return files


def level(error: np.ndarray) -> float:
    """How loud an error is, in dB of full scale."""
    return 20 * np.log10(np.sqrt(np.mean(np.square(error, dtype=np.float64))) + 1e-12)


def refused(value, **options) -> str:
    with pytest.raises(BadMedia) as caught:
        DecodeAudio(**options).read(value)
    assert len(str(caught.value)) > len(caught.value.path) > 0
    return caught.value.reason


def test_a_sound_is_float32_channels_by_frames(sounds):
    sample = DecodeAudio()({"audio": str(sounds["wav"]), "label": 3})
    want, _ = soundfile.read(sounds["wav"], dtype="float32")
    np.testing.assert_array_equal(sample["audio"], want.T)
    assert sample["audio"].dtype == np.float32
    rest = {name: value for name, value in sample.items() if name != "audio"}
    assert rest == {"label": 3, "audio_sample_rate": RATE, "audio_start": 0, "audio_frames": len(want)}


def test_lossless_files_come_back_to_the_bit(tmp_path):
    data = (np.random.default_rng(1).integers(-(2**15), 2**15, (5000, 2)) / 2**15).astype(np.float32)
    for name in ("wav", "flac", "aiff"):
        path = write_sound(tmp_path / f"x.{name}", data)
        np.testing.assert_array_equal(DecodeAudio().read(path).data, data.T)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.2345, 3.0, 5.4])
def test_a_crop_is_the_same_frames_of_the_whole(sounds, name, seconds):
    whole = DecodeAudio().read(sounds[name])
    clip = DecodeAudio(frames=4321).read(sounds[name], offset=seconds)
    assert clip.start == round(seconds * whole.sample_rate)
    np.testing.assert_array_equal(clip.data, whole.data[:, clip.start : clip.start + 4321])


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(
    ("format_", "subtype"),
    [("WAV", "PCM_16"), ("WAVEX", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("WAV", "ULAW")],
)
def test_any_part_of_a_wav_is_what_the_library_reads(tmp_path, channels, format_, subtype):
    path = write_sound(tmp_path / "a.wav", sound(0.5, channels=channels), format=format_, subtype=subtype)
    # What follows the samples is no sound.
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4000) + bytes([77]) * 4000)
    want = soundfile.read(path, dtype="float32", always_2d=True)[0]
    source = open_audio(path)
    for start, stop in [(0, len(want)), (100, 101), (5000, 9000), (len(want) - 7, len(want)), (3, 3)]:
        found = source.read(start, stop)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, want[start:stop])
    for start, stop in [(len(want) - 1, len(want) + 1), (len(want) + 5, len(want) + 9)]:
        with pytest.raises(BadMedia, match="it was cut off"):
            source.read(start, stop)
    source.close()


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("flac", {}, 0),
        ("ogg", {"format": "OGG", "subtype": "VORBIS"}, 0),
        ("mp3", {}, 1e-6),
        ("mp3", {"bitrate_mode": "CONSTANT"}, 1e-6),
        ("opus", {"format": "OGG", "subtype": "OPUS"}, 1e-3),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_any_crop_of_a_noisy_sound_is_that_of_the_whole(tmp_path, name, options, tolerance, channels):
    draw = rng(7, name, channels)
    steps = draw.standard_normal((120_000, channels)) * np.linspace(0.02, 1.5, 120_000)[:, None]
    path = write_sound(tmp_path / f"noise.{name}", np.sin(np.cumsum(steps, axis=0)) * 0.6, rate=24_000, **options)
    whole = soundfile.read(path, dtype="float32", always_2d=True)[0]
    source = open_audio(path)
    starts = [*draw.integers(0, len(whole) - 700, 150), *range(len(whole) - 20_000, len(whole) - 700, 331)]
    for start in map(int, starts):
        found = source.read(start, start + 700)
        np.testing.assert_allclose(found, whole[start : start + 700], rtol=0, atol=tolerance, err_msg=str(start))
    source.close()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_resampled_crop_is_that_of_the_whole_resampled(sounds, name, crop, rate):
    whole = DecodeAudio(sample_rate=rate, mono=True).read(sounds[name])
    clip = DecodeAudio(sample_rate=rate, mono=True, frames=20_000, crop=crop).read(sounds[name], rng=rng(1, crop))
    assert clip.data.shape == (1, 20_000)
    assert clip.frames == 20_000
    assert level(clip.data - whole.data[:, clip.start : clip.start + 20_000]) < -120


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000, 44_101])
def test_resampling_is_soxrs(sounds, rate):
    data, _ = soundfile.read(sounds["flac"], dtype="float32")
    want = soxr.resample(data, RATE, rate)
    whole = DecodeAudio(sample_rate=rate).read(sounds["flac"]).data
    np.testing.assert_array_equal(whole, want.T)
    clip = DecodeAudio(sample_rate=rate, frames=5000).read(sounds["flac"], offset=2.5)
    start = round(2.5 * rate)
    assert level(clip.data - want.T[:, start : start + 5000]) < -120


def test_mono_is_the_mean_of_the_channels(tmp_path):
    data = sound(1.0, channels=5)
    path = write_sound(tmp_path / "five.wav", data, subtype="FLOAT")
    clip = DecodeAudio(mono=True).read(path)
    np.testing.assert_allclose(clip.data, data.mean(axis=1)[None], atol=1e-6)


def test_bytes_paths_and_files_are_the_same(sounds):
    for name in FORMATS:
        decode = DecodeAudio(frames=5000)
        want = decode.read(sounds[name], offset=2).data
        content = sounds[name].read_bytes()
        np.testing.assert_array_equal(decode.read(content, offset=2).data, want)
        np.testing.assert_array_equal(decode.read(memoryview(content), offset=2).data, want)
        with open(sounds[name], "rb") as file:
            np.testing.assert_array_equal(decode.read(file, offset=2).data, want)
            assert not file.closed


class Counting:
    """A file that counts what is read of it."""

    def __init__(self, file):
        self.file, self.num_bytes = file, 0

    def read(self, size=-1):
        data = self.file.read(size)
        self.num_bytes += len(data)
        return data

    def seek(self, *where):
        return self.file.seek(*where)

    def tell(self):
        return self.file.tell()

    def seekable(self):
        return True

    def readable(self):
        return True

    def readinto(self, buffer):
        count = self.file.readinto(buffer)
        self.num_bytes += count
        return count


@pytest.mark.parametrize("name", ["wav", "flac", "m4a"])
def test_of_a_long_sound_only_the_crop_is_read(tmp_path, name):
    data = sound(45.0)
    path = tmp_path / f"long.{name}"
    if name == "m4a":
        write_aac(path, data)
    else:
        write_sound(path, data)
    with open(path, "rb") as file:
        counting = Counting(file)
        clip = DecodeAudio(seconds=1.0, sample_rate=16_000, mono=True, crop="random").read(counting, rng=rng(3))
    assert clip.data.shape == (1, 16_000)
    assert clip.start > 16_000
    assert 0 < counting.num_bytes < path.stat().st_size // 4


def test_a_remote_sound_is_read_by_ranges(sounds):
    from penstock import open_store

    open_store("memory://sounds").put("a.flac", sounds["flac"].read_bytes())
    with open_file("memory://sounds/a.flac") as file:
        clip = DecodeAudio(frames=1000).read(file, offset=3)
    np.testing.assert_array_equal(clip.data, DecodeAudio(frames=1000).read(sounds["flac"], offset=3).data)


def loud_sound() -> np.ndarray:
    """Silence with a soft second at 2 s, a loud one at 5 s and one click at 8.5 s."""
    data = np.zeros((10_000, 1), np.float32)
    data[2000:3000] = 0.1
    data[5000:6000] = 0.5
    data[8500] = 0.9
    return data


def test_where_crops_lie(tmp_path):
    path = write_sound(tmp_path / "loud.wav", loud_sound(), rate=1000, subtype="FLOAT")

    def start(crop, length, seed=0):
        return DecodeAudio(frames=length, crop=crop).read(path, rng=rng(seed)).start

    assert start("start", 1000) == 0
    assert start("max_mean", 1000) == 5000
    assert start("max_center", 1000) == 8000
    assert start("max_center", 5000) == 5000
    assert {start(crop, 10_000) for crop in CROPS} == {0}
    randoms = {start("random", 1000, seed) for seed in range(60)}
    assert len(randoms) > 55
    assert min(randoms) < 1500
    assert max(randoms) > 7500
    louds = [start("random_loud", 1000, seed) for seed in range(60)]
    assert len(set(louds)) > 50
    assert all(4500 <= at <= 5500 for at in louds)


def test_every_start_is_drawn_and_none_beyond(tmp_path):
    path = write_sound(tmp_path / "x.wav", np.zeros((5, 1), np.float32), rate=1000)
    for crop in ("random", "random_loud"):
        starts = {DecodeAudio(frames=3, crop=crop).read(path, rng=rng(seed)).start for seed in range(60)}
        assert starts == {0, 1, 2}


def test_short_sounds_are_padded_kept_or_refused(tmp_path):
    path = write_sound(tmp_path / "x.wav", np.full((100, 2), 0.5, np.float32), subtype="FLOAT")
    for crop in CROPS:
        padded = DecodeAudio(frames=150, crop=crop).read(path, rng=rng(0))
        assert padded.data.shape == (2, 150)
        assert (padded.start, padded.frames) == (0, 100)
        assert (padded.data[:, :100] == 0.5).all()
        assert not padded.data[:, 100:].any()
        assert DecodeAudio(frames=150, crop=crop, short="keep").read(path, rng=rng(0)).data.shape == (2, 100)
    assert refused(path, frames=150, short="error") == "too-short"


@pytest.mark.parametrize("options", [{"seconds": 1}, {"frames": 150}, {}, {"seconds": 1, "short": "keep"}])
def test_a_crop_that_begins_after_the_end_is_refused_and_not_silence(tmp_path, sounds, options):
    path = write_sound(tmp_path / "x.wav", np.full((100, 2), 0.5, np.float32), subtype="FLOAT")
    for value, at in ((path, 100 / RATE), (path, 1), *((sounds[name], 9) for name in FORMATS)):
        with pytest.raises(BadMedia, match=r"from .* s on") as caught:
            DecodeAudio(offset=at, **options)({"audio": str(value)})
        assert (caught.value.reason, caught.value.path) == ("too-short", str(value))
    assert DecodeAudio(**options).read(path, offset=99 / RATE).frames == 1


def test_an_offset_may_be_a_field(sounds):
    decode = DecodeAudio(frames=100, offset="at", out="clip")
    sample = decode({"audio": str(sounds["wav"]), "at": 1.5})
    assert sample["clip_start"] == RATE * 3 // 2
    assert sample["audio"] == str(sounds["wav"])
    for at in (-1, "x", None, float("nan")):
        with pytest.raises(ConfigError, match="offset"):
            decode({"audio": str(sounds["wav"]), "at": at})


def test_nothing_stays_nothing():
    sample = DecodeAudio()({"audio": None})
    assert sample == {"audio": None, "audio_sample_rate": None, "audio_start": None, "audio_frames": None}
    with pytest.raises(BadMedia, match="required"):
        DecodeAudio(required=True)({"audio": None})
    with pytest.raises(ConfigError, match="no field"):
        DecodeAudio()({"x": 1})


def test_values_stay_within_full_scale(tmp_path):
    path = write_sound(tmp_path / "x.wav", np.array([[2.0], [-3.0], [0.5]], np.float32), subtype="FLOAT")
    assert DecodeAudio().read(path).data.tolist() == [[1.0, -1.0, 0.5]]


def test_bad_files_say_what_is_wrong(tmp_path, sounds):
    def file(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    whole = {name: sounds[name].read_bytes() for name in FORMATS}
    assert refused(file("empty.wav", b"")) == "empty"
    assert refused(b"") == "empty"
    assert refused(file("half.wav", whole["wav"][: len(whole["wav"]) // 2])) == "truncated"
    assert refused(file("head.wav", whole["wav"][:20])) == "truncated"
    assert refused(file("half.flac", whole["flac"][: len(whole["flac"]) // 2])) in ("truncated", "corrupt")
    assert refused(file("half.m4a", whole["m4a"][: len(whole["m4a"]) // 2])) == "unreadable"
    assert refused(file("text.mp3", b"This is no sound at all. " * 100)) == "not-audio"
    assert refused(file("picture.wav", b"\x89PNG\r\n\x1a\n" + bytes(100))) == "not-audio"
    assert refused(file("page.flac", b"<html>404</html>" * 10)) == "not-audio"
    assert refused(write_sound(tmp_path / "none.wav", np.zeros((0, 1), np.float32))) == "empty"
    noise = np.random.default_rng(0).bytes(50_000)
    for start in (b"fLaC", b"RIFF\xff\xff\xff\xffWAVE", b"OggS", b"ID3", b"\x00\x00\x00\x20ftypM4A ", b"\xff\xf1"):
        assert refused(start + noise) in ("not-audio", "corrupt", "truncated", "unreadable", "no-audio", "empty")


@pytest.mark.parametrize("name", FORMATS)
def test_damage_in_the_middle_is_never_a_crash(sounds, name):
    whole = sounds[name].read_bytes()
    reasons = set()
    for seed in range(10):
        damaged = bytearray(whole)
        draw = np.random.default_rng(seed)
        for at in draw.integers(0, len(whole) if seed % 2 else 300, 10):
            damaged[at] = draw.integers(256)
        try:
            clip = DecodeAudio(seconds=0.5, crop="random", sample_rate=8000).read(bytes(damaged), rng=rng(seed))
            assert clip.data.shape[1] == 4000
            assert np.abs(clip.data).max() <= 1
        except BadMedia as error:
            reasons.add(error.reason)
    assert reasons <= {
        "corrupt",
        "truncated",
        "unreadable",
        "not-audio",
        "no-audio",
        "too-large",
        "empty",
        "not-finite",
    }


def test_a_wrong_extension_does_not_matter(tmp_path, sounds):
    for name in FORMATS:
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(sounds[name].read_bytes())
        np.testing.assert_array_equal(DecodeAudio().read(path).data, DecodeAudio().read(sounds[name]).data)


def test_a_wav_of_unknown_length_goes_on_to_the_end(tmp_path, sounds):
    content = bytearray(sounds["wav"].read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    content[4:8] = struct.pack("<I", 0xFFFFFFFF)
    np.testing.assert_array_equal(DecodeAudio().read(bytes(content)).data, DecodeAudio().read(sounds["wav"]).data)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, value):
    data = sound(1.0)
    data[30_000, 1] = value
    path = write_sound(tmp_path / "nan.wav", data, subtype="FLOAT")
    assert refused(path) == "not-finite"
    assert refused(path, sample_rate=16_000, mono=True) == "not-finite"
    assert refused(path, frames=100, crop="max_mean") == "not-finite"
    assert np.isfinite(DecodeAudio(frames=1000).read(path).data).all()


def test_limits_hold_before_anything_is_decoded(tmp_path, sounds):
    for name in FORMATS:
        assert refused(sounds[name], max_seconds=5) == "too-large"
        assert refused(sounds[name], max_seconds=5, seconds=1, crop="max_mean") == "too-large"
    assert DecodeAudio(max_seconds=5, seconds=1).read(sounds["flac"], offset=4).frames == RATE
    # A header of a few bytes that promises two days of 8 channels.
    content = bytearray(sounds["flac"].read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    assert refused(bytes(content)) == "too-large"
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 2**31, b"WAVE", b"fmt ", 16, 1, 1, 4_000_000, 8_000_000, 2, 16, b"data", 8
    )
    assert refused(header + bytes(8)) == "too-large"


def test_a_playlist_opens_nothing_else(tmp_path, sounds):
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6,\n{sounds['aac']}\n#EXT-X-ENDLIST\n")
    assert refused(playlist) == "not-audio"
    files = tmp_path / "list.txt"
    files.write_text(f"ffconcat version 1.0\nfile {sounds['aac']}\n")
    assert refused(files) == "not-audio"


def test_a_file_that_is_not_there():
    with pytest.raises(ObjectMissing, match=r"nowhere\.wav"):
        DecodeAudio().read("nowhere.wav")
    with pytest.raises(ConfigError, match="decoded before"):
        DecodeAudio().read(np.zeros((1, 5)).tolist())


def test_options_that_cannot_work_are_refused_at_once():
    for options in (
        {"seconds": 1, "frames": 1},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"frames": 0},
        {"crop": "loud"},
        {"crop": "random"},
        {"crop": "max_mean", "seconds": 1, "offset": 2},
        {"short": "loop"},
        {"quality": "BEST"},
        {"sample_rate": 0},
        {"max_seconds": 0},
    ):
        with pytest.raises(ConfigError):
            DecodeAudio(**options)


def test_a_random_crop_needs_a_generator(sounds):
    with pytest.raises(ConfigError, match="rng"):
        DecodeAudio(crop="random", seconds=1).read(sounds["wav"])


def test_the_pipeline_takes_frames_in_place_of_seconds_or_the_whole(sounds):
    def shape(**options):
        return Chain(audio_pipeline(**options)).one({"audio": str(sounds["wav"])}, 0, 0)["audio"].shape

    assert shape() == (1, 160_000)
    assert shape(frames=777) == (1, 777)
    assert shape(seconds=None, crop="start", sample_rate=RATE) == DecodeAudio(mono=True).read(sounds["wav"]).data.shape
    with pytest.raises(ConfigError, match="crop='start'"):
        audio_pipeline(seconds=None)
    with pytest.raises(ConfigError, match="not both"):
        audio_pipeline(seconds=2, frames=777)


def test_the_pipeline_gives_crops_of_one_shape_that_depend_on_the_sample_alone(sounds):
    chain = Chain(audio_pipeline(seconds=2.0), seed=5)
    again = pickle.loads(pickle.dumps(Chain(audio_pipeline(seconds=2.0), seed=5)))
    starts = set()
    for id_, name in enumerate(FORMATS):
        first, second = (c.one({"audio": str(sounds[name])}, 0, id_) for c in (chain, again))
        assert first["audio"].shape == (1, 32_000)
        assert first["audio"].dtype == np.float32
        assert np.abs(first["audio"]).max() <= 1
        np.testing.assert_array_equal(first["audio"], second["audio"])
        starts.add(first["audio_start"])
    assert len(starts) == len(FORMATS)
