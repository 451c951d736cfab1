"""Chains of transforms for latents and embeddings, which were made of images, videos, sounds and texts before training.

Each gives a list for `transforms=` of a dataset or `transform=` of a loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from penstock.transforms.latent_crop import CropLatent
from penstock.transforms.latents import LoadLatent, SampleEmbedding, SampleLatent
from penstock.transforms.media_options import made_with

Transform = Callable[..., Any]


def image_latent_pipeline(
    field: str = "latent",
    *,
    out: str | None = None,
    key: str | Mapping[str, str] | None = None,
    sample: bool = True,
    spread_field: str | None = None,
    spread: Literal["std", "logvar"] = "std",
    axis: int = 0,
    scale: float = 1.0,
    shift: float = 0.0,
    random: bool = True,
    required: bool = False,
) -> list[Transform]:
    """Make an image encoder's latents ready to train on: loaded, checked for NaN, drawn from their distribution.

    Args:
        field: the field that holds a path, or bytes, of .npy, .npz, .safetensors or .pt.
        out: the field to write; None: the same.
        key: see `LoadLatent`; a mapping {"mean": "latent", "std": "latent_std"} loads two arrays of a file.
        sample: draw; False: the file holds the latent itself, or what a model wants as it is.
        spread_field: the field with the spread, where `field` is the mean alone.
        spread: what that is: "std", or "logvar".
        axis: of mean and spread, where one comes after the other.
        scale: the result is (z - shift) · scale.
        shift: see scale.
        random: False gives the mean, for validation.
        required: None is an error, instead of None.

    Returns:
        Transforms: path | bytes → float32 [C, H, W].
    """
    written = None if isinstance(key, Mapping) else out
    chain: list[Transform] = [LoadLatent(field, written, key=key, required=required)]
    if sample:
        name = field if isinstance(key, Mapping) else out or field
        options: dict[str, Any] = {"spread_field": spread_field, "spread": spread, "axis": axis}
        chain.append(SampleLatent(name, out, **options, scale=scale, shift=shift, random=random))
    return chain


def video_latent_pipeline(
    field: str = "latent",
    *,
    out: str | None = None,
    frames: int | None = None,
    crop: Literal["random", "start", "center"] = "random",
    offset: int | str = 0,
    time_axis: int = 1,
    short: Literal["pad", "keep", "error"] = "pad",
    key: str | Mapping[str, str] | None = None,
    sample: bool = True,
    spread_field: str | None = None,
    spread: Literal["std", "logvar"] = "std",
    axis: int = 0,
    scale: float = 1.0,
    shift: float = 0.0,
    random: bool = True,
    required: bool = False,
) -> list[Transform]:
    """Make a video encoder's latents ready to train on: loaded, checked for NaN, cut in time, drawn.

    Args:
        field: see `image_latent_pipeline`.
        out: see `image_latent_pipeline`.
        frames: how many of the latent's own frames; None: all.
        crop: where they are, see `CropLatent`.
        offset: see `CropLatent`.
        time_axis: of time.
        short: what becomes of one with fewer frames, see `CropLatent`.
        key: see `image_latent_pipeline`.
        sample: see `image_latent_pipeline`.
        spread_field: see `image_latent_pipeline`.
        spread: see `image_latent_pipeline`.
        axis: see `image_latent_pipeline`.
        scale: see `image_latent_pipeline`.
        shift: see `image_latent_pipeline`.
        random: False gives the mean, for validation; a crop is still where `crop` says.
        required: see `image_latent_pipeline`.

    Returns:
        Transforms: path | bytes → float32 [C, T, H, W]; with `frames` also `{field}_start` and `{field}_frames`.

    Raises:
        ConfigError: an option cannot work.

    >>> [type(transform).__name__ for transform in video_latent_pipeline(frames=8)]
    ['LoadLatent', 'CropLatent', 'SampleLatent']
    """
    load, *draw = image_latent_pipeline(
        field,
        out=out,
        key=key,
        sample=sample,
        spread_field=spread_field,
        spread=spread,
        axis=axis,
        scale=scale,
        shift=shift,
        random=random,
        required=required,
    )
    if frames is None:
        return [load, *draw]
    loaded = field if isinstance(key, Mapping) else out or field
    along = () if spread_field is None or not sample else (spread_field,)
    cut = CropLatent(frames=frames, field=loaded, along=along, crop=crop, offset=offset, axis=time_axis, short=short)
    return [load, cut, *draw]


def audio_latent_pipeline(
    field: str = "latent",
    *,
    frames: int | None = None,
    crop: Literal["random", "start", "center"] = "random",
    **options: Any,
) -> list[Transform]:
    """Make a sound encoder's latents ready to train on: [2C, T] is loaded, cut in time, and drawn.

    Args:
        field: see `video_latent_pipeline`.
        frames: see `video_latent_pipeline`.
        crop: see `video_latent_pipeline`.
        options: the others of `video_latent_pipeline`.

    Returns:
        Transforms: path | bytes → float32 [C, T].

    Raises:
        ConfigError: an option cannot work.
    """
    latents: list[Transform] = made_with(
        video_latent_pipeline, "audio_latent_pipeline", field=field, frames=frames, crop=crop, **options
    )
    return latents


def text_latent_pipeline(
    field: str = "embedding",
    *,
    out: str | None = None,
    key: str | None = None,
    length: int | None = None,
    mask: str | None = None,
    random: bool = True,
    required: bool = False,
) -> list[Transform]:
    """Make a text encoder's embeddings ready to train on: loaded, one of several drawn, cut or filled to one length.

    Args:
        field: the field that holds a path, or bytes, of an array [T, D] or [N, T, D].
        out: the field to write; None: the same.
        key: which array of a file that holds several.
        length: rows of the result; None: as they are.
        mask: the field for which rows are real; None: `out` + "_mask".
        random: one of several at random; False: the first.
        required: None is an error, instead of None.

    Returns:
        Transforms: path | bytes → float32 [length, D], and int64 [length] in `mask`.
    """
    load = LoadLatent(field, out, key=key, required=required)
    return [load, SampleEmbedding(out or field, length=length, mask=mask, random=random)]
