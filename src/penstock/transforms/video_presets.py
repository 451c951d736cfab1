"""Chains of transforms for videos that come with something: their sound, or a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from penstock.errors import ConfigError
from penstock.transforms.audio import DecodeAudio
from penstock.transforms.image_shapes import Size
from penstock.transforms.media_options import made_with
from penstock.transforms.presets import text_pipeline
from penstock.transforms.video import DecodeVideo, video_pipeline
from penstock.transforms.video_audio import DecodeVideoAudio

Transform = Callable[..., Any]


def joint_video_audio_pipeline(
    field: str = "video",
    *,
    audio_field: str | None = None,
    audio_out: str = "audio",
    frames: int = 16,
    fps: float = 8.0,
    size: Size | None = 256,
    crop: str = "random",
    sample_rate: int = 16_000,
    mono: bool = True,
    missing: str = "silence",
    video_options: Mapping[str, Any] | None = None,
    audio_options: Mapping[str, Any] | None = None,
) -> list[Transform]:
    """Make videos with their sound ready to train on: a clip, and the sound of just that time.

    Args:
        field: the field that holds a path, bytes, or a seekable binary file.
        audio_field: the field with the sound, such as "wav"; None: it is in the video.
        audio_out: the field that the sound is written to.
        frames: see `DecodeVideo`.
        fps: see `DecodeVideo`.
        size: see `DecodeVideo`.
        crop: see `DecodeVideo`.
        sample_rate: see `DecodeAudio`.
        mono: see `DecodeAudio`; False: as many channels as each sound has, which may not stack.
        missing: what a video without sound gets, see `DecodeVideoAudio`.
        video_options: the others of `DecodeVideo`.
        audio_options: the others of `DecodeAudio`; `seconds` or `frames` in place of the length of the clip.

    Returns:
        Transforms: path | bytes → uint8 [frames, H, W, 3] in `field`, float32 [1, frames / fps × sample_rate] in
        `audio_out`.

    Raises:
        ConfigError: an option cannot work.
    """
    seen = {"field": field, "frames": frames, "fps": fps, "size": size, "crop": crop}
    heard = {"field": audio_field or field, "out": audio_out, "sample_rate": sample_rate, "mono": mono}
    video = made_with(DecodeVideo, **_joined("video_options", seen, video_options))
    own = {"field": "audio_field", "out": "audio_out"}
    audio = made_with(DecodeAudio, **_joined("audio_options", heard, audio_options, own))
    return [DecodeVideoAudio(video, audio, missing)]


def text_to_video_pipeline(
    field: str = "video",
    *,
    text_field: str = "text",
    frames: int = 16,
    fps: float | None = 8.0,
    size: Size | None = 256,
    crop: str = "random",
    video_options: Mapping[str, Any] | None = None,
    text_options: Mapping[str, Any] | None = None,
) -> list[Transform]:
    """Make videos with captions ready to train on: a clip, and one text for it.

    Args:
        field: the field that holds a path, bytes, or a seekable binary file.
        text_field: the field with a text, or several of which one is drawn.
        frames: see `DecodeVideo`.
        fps: see `DecodeVideo`.
        size: see `DecodeVideo`.
        crop: see `DecodeVideo`.
        video_options: the others of `DecodeVideo`.
        text_options: of `text_pipeline`: `files=True` where captions are files, `drop=0.1`, a tokenizer, embeddings.

    Returns:
        Transforms: path | bytes → uint8 [frames, H, W, 3] in `field`; the text in `text_field`, or what
        `text_pipeline` makes of it.

    Raises:
        ConfigError: an option cannot work.
    """
    seen = _joined(
        "video_options", {"field": field, "frames": frames, "fps": fps, "size": size, "crop": crop}, video_options
    )
    read = _joined("text_options", {"field": text_field}, text_options, {"field": "text_field"})
    for name in (field, seen.get("out")):
        if name is not None and name in (text_field, read.get("embedding_field")):
            raise ConfigError(f"the video and its text cannot both be in the field {name!r}")
    return [*made_with(text_pipeline, **read), *video_pipeline(**seen)]


def _joined(
    argument: str,
    options: Mapping[str, Any],
    others: Mapping[str, Any] | None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Join options that have arguments of their own, some by another name, and the others.

    Raises:
        ConfigError: the others are no mapping of names, or hold one that has an argument of its own.
    """
    if others is None:
        return dict(options)
    if not isinstance(others, Mapping) or not all(isinstance(name, str) for name in others):
        raise ConfigError(f"{argument} must be a mapping of names, such as {{'required': True}}, got {others!r:.100}")
    if twice := [name for name in others if name in options]:
        instead = ", ".join(f"{renamed.get(name, name)}=" for name in twice)
        raise ConfigError(f"{argument} holds {twice}, which have arguments of their own: give {instead} instead")
    return {**options, **others}
