"""Sounds and videos for tests, made on the spot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 44_100


def sound(seconds: float = 6.0, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """A chirp, a tone and a little noise, below half of full scale: float32 [frames, channels]."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(t))
    left = 0.3 * np.sin(2 * np.pi * (200 + 60 * t) * t) + 0.01 * noise
    rest = [0.2 * np.sin(2 * np.pi * 900 * k * t) for k in range(1, channels)]
    return np.stack([left, *rest], axis=1).astype(np.float32)


def write_sound(path: Path, data: np.ndarray, rate: int = RATE, **options) -> Path:
    soundfile.write(path, data, rate, **options)
    return path


def mux_sound(container, stream, data: np.ndarray, rate: int) -> None:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data.T), format="fltp", layout=stream.layout.name)
    frame.sample_rate, frame.pts = rate, 0
    codec = stream.codec_context
    pieces = av.AudioResampler(
        format=codec.format.name, layout=stream.layout.name, rate=rate, frame_size=codec.frame_size or 1024
    )
    for whole in (frame, None):
        for piece in pieces.resample(whole):
            container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def write_aac(path: Path, data: np.ndarray, rate: int = RATE, format_: str | None = None) -> Path:
    with av.open(str(path), "w", format=format_) as container:
        stream = container.add_stream("aac", rate=rate, layout="mono" if data.shape[1] == 1 else "stereo")
        # Without noise that the decoder makes up.
        stream.options = {"aac_pns": "0"}
        mux_sound(container, stream, data, rate)
    return path


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A picture that says its number: uint8 [height, width, 3], a smooth ground and a bar that moves."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 200 // width, y * 200 // height, np.full_like(x, number * 7 % 200)], axis=-1).astype(
        np.uint8
    )
    at = number * 5 % (width - 8)
    ground[:, at : at + 8] = 255
    return ground


def write_video(
    path: Path,
    times_ms: list[int],
    *,
    size: tuple[int, int] = (64, 96),
    codec: str = "libx264",
    rotation: int = 0,
    data: np.ndarray | None = None,
    rate: int = RATE,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write one picture at each of these times, and sound if there is any."""
    height, width = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {"g": "12", "bf": "2", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        audio = None
        if data is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono" if data.shape[1] == 1 else "stereo")
            audio.options = {"aac_pns": "0"}
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            mux_sound(container, audio, data, rate)
    return path
