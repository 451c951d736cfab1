"""Clips of videos: the frames that decoding from the beginning gives, whatever the file, and limits that hold."""

from __future__ import annotations

import pickle
from fractions import Fraction

import av
import numpy as np
import pytest

from media_subjects import sound, write_sound, write_video
from penstock.errors import BadMedia, ConfigError
from penstock.seeds import rng
from penstock.store.ranged_file import open_file
from penstock.transforms.chain import Chain
from penstock.transforms.video import DecodeVideo, video_pipeline
from penstock.transforms.video_source import VideoSource

STEPS = np.random.default_rng(0).integers(15, 90, 119)
VARYING = [0, *np.cumsum(STEPS).tolist()]
STEADY = list(range(0, 4000, 40))
OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:keyint=12:scenecut=0"}
VIDEOS = {
    "varying.mp4": {"times_ms": VARYING},
    "open.mp4": {"times_ms": VARYING, "options": OPEN_GROUPS},
    "front.mp4": {"times_ms": VARYING, "container_options": {"movflags": "faststart"}},
    "late.mp4": {"times_ms": [time + 1500 for time in VARYING]},
    "one_key.mp4": {"times_ms": VARYING, "options": {"g": "500", "bf": "2"}},
    "steady.mov": {"times_ms": STEADY, "codec": "mpeg4", "options": {"g": "12"}},
    "varying.mkv": {"times_ms": VARYING},
    "vp9.webm": {"times_ms": VARYING, "codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}},
    "steady.avi": {"times_ms": STEADY, "codec": "mpeg4", "options": {"g": "12"}},
    "turned.mp4": {"times_ms": STEADY, "rotation": 90},
    "sound.mp4": {"times_ms": VARYING, "data": sound(6.0)},
}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write_video(folder / name, **options) for name, options in VIDEOS.items()}


def decoded(path):
    """All frames as PyAV gives them, one by one from the beginning, and when they are shown in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [float((frame.pts - (stream.start_time or 0)) * stream.time_base) for frame in frames]
        turns = round(frames[0].rotation / 90)
        return np.stack([np.rot90(frame.to_ndarray(format="rgb24"), turns) for frame in frames]), np.array(times)


def refused(value, offset=0.0, **options) -> str:
    with pytest.raises(BadMedia) as caught:
        DecodeVideo(**options).read(value, offset)
    assert len(str(caught.value)) > len(caught.value.path) > 0
    return caught.value.reason


@pytest.mark.parametrize("name", VIDEOS)
def test_a_whole_video_is_what_pyav_decodes(videos, name):
    pixels, times = decoded(videos[name])
    clip = DecodeVideo(frames=None).read(videos[name])
    np.testing.assert_array_equal(clip.data, pixels)
    np.testing.assert_allclose(clip.times, times, atol=1e-9)
    assert clip.data.dtype == np.uint8
    assert clip.frames == len(pixels)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_clip_from_anywhere_equals_decoding_from_the_beginning(videos, name):
    pixels, times = decoded(videos[name])
    decode = DecodeVideo(frames=7)
    for first in range(0, len(pixels) - 7, 5):
        clip = decode.read(videos[name], times[first])
        np.testing.assert_array_equal(clip.data, pixels[first : first + 7])
        np.testing.assert_allclose(clip.times, times[first : first + 7], atol=1e-9)
        assert clip.start == clip.times[0]


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("fps", [3.0, 12.5, 60.0])
def test_at_each_moment_the_frame_is_shown_that_began_last(videos, name, fps):
    pixels, times = decoded(videos[name])
    end = 4.0 if VIDEOS[name]["times_ms"] is STEADY else times[-1] + 0.04
    for offset in (0.0, 0.4, 1.7, 2.0, 3.1):
        clip = DecodeVideo(frames=5, fps=fps).read(videos[name], offset)
        shown = np.maximum(0, np.searchsorted(times, offset + np.arange(5) / fps + 0.0005, side="right") - 1)
        kept = np.minimum(np.arange(5), clip.frames - 1)
        np.testing.assert_array_equal(clip.data, pixels[shown][kept])
        np.testing.assert_allclose(clip.times, times[shown][kept], atol=1e-9)
        assert (clip.start, clip.fps) == (offset, fps)
        assert clip.frames == np.sum(offset + np.arange(5) / fps + 0.0005 < end)


@pytest.mark.parametrize("name", VIDEOS)
def test_random_clips_are_parts_of_the_video(videos, name):
    pixels, times = decoded(videos[name])
    starts = set()
    for seed in range(8):
        clip = DecodeVideo(frames=9, crop="random").read(videos[name], rng=rng(seed))
        first = int(np.argmin(np.abs(times - clip.start)))
        np.testing.assert_array_equal(clip.data, pixels[first : first + 9])
        starts.add(first)
        clip = DecodeVideo(frames=9, fps=10, crop="random").read(videos[name], rng=rng(seed))
        assert 0 <= clip.start <= times[-1] - 0.8
        assert clip.frames == 9
    assert len(starts) > 4
    middle = DecodeVideo(frames=9, crop="center").read(videos[name])
    first = (len(pixels) - 9) // 2
    np.testing.assert_array_equal(middle.data, pixels[first : first + 9])


def test_bytes_and_files_are_the_same_as_paths(videos):
    from penstock import open_store

    decode = DecodeVideo(frames=5, fps=10)
    for name, path in videos.items():
        want = decode.read(path, 2.0).data
        np.testing.assert_array_equal(decode.read(path.read_bytes(), 2.0).data, want)
        open_store("memory://videos").put(name, path.read_bytes())
        with open_file(f"memory://videos/{name}") as file:
            np.testing.assert_array_equal(decode.read(file, 2.0).data, want)


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


def test_of_a_long_video_only_the_clip_is_read_and_decoded(tmp_path):
    path = write_video(tmp_path / "long.mp4", list(range(0, 80_000, 40)), options={"g": "25", "crf": "5"})
    with open(path, "rb") as file:
        counting = Counting(file)
        clip = DecodeVideo(frames=10, fps=5, crop="random", max_frames=90).read(counting, rng=rng(1))
    assert clip.start > 10
    assert counting.num_bytes < path.stat().st_size // 4


def test_frames_are_scaled_in_every_way(videos):
    path, turned = videos["varying.mp4"], videos["turned.mp4"]

    def shape(path, **options):
        return DecodeVideo(frames=2, **options).read(path).data.shape[1:]

    assert shape(path) == (64, 96, 3)
    assert shape(turned) == (96, 64, 3)
    for fit in ("stretch", "cover", "contain"):
        assert shape(path, size=(40, 30), fit=fit) == (40, 30, 3)
        assert shape(turned, size=32, fit=fit) == (32, 32, 3)
    assert shape(path, size=32, fit="shorter") == (32, 48, 3)
    assert shape(turned, size=48, fit="longer") == (48, 32, 3)

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        stretched = frame.to_ndarray(format="rgb24", width=30, height=40, interpolation="BILINEAR")
        covered = frame.to_ndarray(format="rgb24", width=60, height=40, interpolation="BILINEAR")[:, 15:45]
        contained = frame.to_ndarray(format="rgb24", width=30, height=20, interpolation="BILINEAR")
    np.testing.assert_array_equal(DecodeVideo(size=(40, 30), fit="stretch").read(path).data[0], stretched)
    np.testing.assert_array_equal(DecodeVideo(size=(40, 30)).read(path).data[0], covered)
    clip = DecodeVideo(size=(40, 30), fit="contain").read(path).data
    np.testing.assert_array_equal(clip[0, 10:30], contained)
    assert not clip[:, :10].any()
    assert not clip[:, 30:].any()


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_video_is_upright(tmp_path, videos, rotation):
    path = write_video(tmp_path / "turned.mp4", STEADY[:5], rotation=rotation)
    plain = write_video(tmp_path / "plain.mp4", STEADY[:5])
    want = np.rot90(DecodeVideo(frames=5).read(plain).data, rotation // 90, axes=(1, 2))
    np.testing.assert_array_equal(DecodeVideo(frames=5).read(path).data, want)


def test_short_videos_are_padded_kept_or_refused(videos):
    path = videos["varying.mp4"]
    pixels, times = decoded(path)
    for options in ({}, {"fps": 60.0}):
        padded = DecodeVideo(frames=200, **options).read(path, times[-3])
        assert padded.data.shape == (200, 64, 96, 3)
        assert 3 <= padded.frames < 20
        assert (padded.data[padded.frames - 1 :] == pixels[-1]).all()
        kept = DecodeVideo(frames=200, short="keep", **options).read(path, times[-3])
        np.testing.assert_array_equal(kept.data, padded.data[: padded.frames])
        assert len(kept.times) == padded.frames
        assert refused(path, times[-3], frames=200, short="error", **options) == "too-short"
        assert refused(path, 100.0, frames=3, **options) == "too-short"


def test_whole_videos_at_another_rate(videos):
    clip = DecodeVideo(frames=None, fps=5).read(videos["steady.mov"])
    assert len(clip.data) == 20
    assert len(DecodeVideo(frames=None, fps=5).read(videos["vp9.webm"]).data) == 31


def test_bad_files_say_what_is_wrong(tmp_path, videos):
    whole = videos["front.mp4"].read_bytes()
    cut = whole[: len(whole) * 2 // 3]
    late = DecodeVideo(frames=7).read(videos["front.mp4"], 5.0)
    assert late.frames == 7
    for options in ({}, {"fps": 10.0}):
        assert refused(cut, 5.0, frames=7, **options) in ("truncated", "corrupt")
        assert refused(cut, frames=None, **options) in ("truncated", "corrupt")
        assert DecodeVideo(frames=7, **options).read(cut).frames == 7
    with pytest.raises(BadMedia, match="cut off"):
        DecodeVideo(frames=7, crop="random").read(cut, rng=rng(0))
    assert refused(videos["varying.mp4"].read_bytes()[:5000]) == "unreadable"
    assert refused(b"") == "empty"
    (tmp_path / "empty.mp4").touch()
    assert refused(tmp_path / "empty.mp4") == "empty"
    assert refused(b"This is a text and no video. " * 50) == "unreadable"
    assert refused(b"\xff\xd8\xff\xe0" + bytes(500)) == "unreadable"
    assert refused(write_sound(tmp_path / "sound.mp4", sound(0.5), format="WAV")) == "no-video"
    noise = np.random.default_rng(0).bytes(20_000)
    for start in (b"\x00\x00\x00\x20ftypisom", b"\x1aE\xdf\xa3", b"RIFF\xff\xff\xff\xffAVI "):
        assert refused(start + noise) in ("unreadable", "no-video", "corrupt")


def test_damage_in_the_middle_is_never_a_crash(videos):
    whole = bytearray(videos["front.mp4"].read_bytes())
    reasons = set()
    for seed in range(30):
        damaged = bytearray(whole)
        draw = np.random.default_rng(seed)
        for at in draw.integers(0, len(whole), 40):
            damaged[at] = draw.integers(256)
        try:
            clip = DecodeVideo(frames=None, size=(16, 16)).read(bytes(damaged))
            assert clip.data.shape[1:] == (16, 16, 3)
        except BadMedia as error:
            reasons.add(error.reason)
    assert reasons <= {"unreadable", "corrupt", "truncated", "too-large", "too-short", "no-video", "empty"}


def test_a_wrong_extension_does_not_matter(tmp_path, videos):
    path = tmp_path / "video.jpg"
    path.write_bytes(videos["varying.mkv"].read_bytes())
    np.testing.assert_array_equal(DecodeVideo().read(path).data, DecodeVideo().read(videos["varying.mkv"]).data)


def test_limits_hold(tmp_path, videos):
    path = videos["varying.mp4"]
    assert refused(path, max_pixels=64 * 96 - 1) == "too-large"
    assert refused(path, frames=11, max_frames=10) == "too-large"
    assert refused(path, frames=None, max_frames=100) == "too-large"
    assert refused(path, frames=None, max_seconds=5) == "too-large"
    assert refused(path, frames=16, fps=2, max_seconds=5) == "too-large"
    assert refused(path, frames=20_000, size=4096, fit="stretch") == "too-large"
    # A clip late in a video with one key frame needs all that comes before.
    assert refused(videos["one_key.mp4"], 5.0, frames=3, max_frames=50) == "too-large"


def test_absurd_dimensions_are_refused_by_the_header(tmp_path):
    path = tmp_path / "huge.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 15_000, 15_000, "gray"
        frame = av.VideoFrame(15_000, 15_000, "gray")
        memoryview(frame.planes[0]).cast("B")[:] = bytes(frame.planes[0].buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert path.stat().st_size < 2_000_000
    assert refused(path) == "too-large"


def test_a_playlist_opens_nothing_else(tmp_path, videos):
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {videos['varying.mp4']}\n")
    assert refused(playlist) == "unreadable"


def test_files_are_closed(videos, tmp_path):
    import os

    def count():
        return len(os.listdir("/proc/self/fd"))

    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    before = count()
    for _ in range(5):
        for path in videos.values():
            DecodeVideo(frames=2).read(path, 1.0)
            DecodeVideo(frames=2).read(path.read_bytes(), 1.0)
            refused(path, max_pixels=1)
            refused(path, 50.0)
        refused(tmp_path / "bad.mp4")
    assert count() == before


def test_a_sample_says_what_its_clip_is(videos):
    sample = DecodeVideo(frames=3, fps=10, offset="at")({"video": str(videos["varying.mp4"]), "at": 1.5})
    assert sample["video"].shape == (3, 64, 96, 3)
    assert sample["video_times"].shape == (3,)
    assert (sample["video_start"], sample["video_fps"], sample["video_frames"]) == (1.5, 10, 3)
    nothing = DecodeVideo(out="clip")({"video": None})
    assert set(nothing) == {"video", "clip", "clip_times", "clip_start", "clip_fps", "clip_frames"}
    assert set(nothing.values()) == {None}


def test_options_that_cannot_work_are_refused_at_once():
    for options in (
        {"frames": 0},
        {"fps": 0},
        {"fps": float("nan")},
        {"crop": "best"},
        {"crop": "random", "frames": None},
        {"crop": "center", "offset": 1.0},
        {"size": 0},
        {"size": (3, 4, 5)},
        {"fit": "squeeze"},
        {"method": "sharp"},
        {"short": "loop"},
        {"threads": 0},
        {"max_seconds": -1},
    ):
        with pytest.raises(ConfigError):
            DecodeVideo(**options)


def test_counting_frames_leaves_the_video_as_it_was(videos):
    video = VideoSource(videos["varying.mp4"], max_pixels=10**6, max_frames=1000)
    try:
        scan = video.scan()
        assert scan.num_frames == 120
        assert next(video.frames()).pts == scan.stamps[0]
        assert [frame.pts for frame in video.frames()] == scan.stamps.tolist()
        assert video.tick == Fraction(1, 16_000)
    finally:
        video.close()


def test_the_pipeline_takes_whole_videos_from_their_start(videos):
    path = next(iter(videos.values()))
    whole = Chain(video_pipeline(frames=None, crop="start", size=32)).one({"video": str(path)}, 0, 0)["video"]
    np.testing.assert_array_equal(whole, DecodeVideo(frames=None, fps=8, size=32).read(path).data)
    with pytest.raises(ConfigError, match="crop='start'"):
        video_pipeline(frames=None)


def test_the_pipeline_gives_clips_of_one_shape_that_depend_on_the_sample_alone(videos):
    chain = Chain(video_pipeline(frames=4, size=(32, 48)), seed=5)
    again = pickle.loads(pickle.dumps(Chain(video_pipeline(frames=4, size=(32, 48)), seed=5)))
    for id_, path in enumerate(videos.values()):
        first, second = (c.one({"video": str(path)}, 0, id_) for c in (chain, again))
        assert first["video"].shape == (4, 32, 48, 3)
        np.testing.assert_array_equal(first["video"], second["video"])


def test_frames_a_second_are_a_float_however_they_are_asked_for(videos):
    for fps in (8, 8.0, None):
        assert type(DecodeVideo(frames=2, fps=fps).read(next(iter(videos.values()))).fps) is float
