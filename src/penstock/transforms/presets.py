"""Chains of transforms that most people want, by name.

Each gives a list for `transforms=` of a dataset or `transform=` of a loader; what is in it can be
looked at, changed, and run by hand with `Chain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from penstock.errors import ConfigError
from penstock.transforms.captions import ReadText, SampleText
from penstock.transforms.image import DecodeImage, Method
from penstock.transforms.image_augment import ChannelsFirst, FitBucket, FlipImage, NormalizeImage, RandomResizedCrop
from penstock.transforms.image_shapes import Fit, Size
from penstock.transforms.latent_presets import text_latent_pipeline
from penstock.transforms.media import MAX_PIXELS
from penstock.transforms.metadata import (
    Cast,
    ClassId,
    Constants,
    Filter,
    Gather,
    LoadJson,
    OneHot,
    PickSubfield,
    Rename,
)
from penstock.transforms.tokenize_text import TokenizeText

Transform = Callable[..., Any]


def image_pipeline(
    size: Size | None = None,
    *,
    field: str = "image",
    out: str | None = None,
    augment: bool = False,
    buckets: Sequence[tuple[int, int]] | None = None,
    flip: float | None = None,
    fit: Fit = "cover",
    method: Method = "area",
    mode: Literal["RGB", "RGBA", "L"] = "RGB",
    layout: Literal["hwc", "chw"] = "chw",
    normalize: tuple[Any, Any] | None = None,
    max_pixels: int | None = MAX_PIXELS,
    required: bool = False,
) -> list[Transform]:
    """Make images ready to train on: decoded, scaled, cut, mirrored.

    Args:
        size: of the result: a side, or (height, width). None: as they are.
        field: the field that holds a path, or bytes.
        out: the field to write; None: the same.
        augment: a part of random area and shape, in place of `fit`.
        buckets: sizes, of which each image gets the one nearest to its shape, in place of `size`; its number goes to
            the field "bucket".
        flip: probability of mirroring left to right. None: 0.5 with `augment`, else 0.
        fit: how an image becomes `size`, see `ResizeImage`.
        method: how it is scaled, see `ResizeImage`.
        mode: "RGB", "L" (grey) or "RGBA".
        layout: "chw": [3, H, W], as torch's models want it, or "hwc".
        normalize: (mean, std) of numbers in [0, 1], one each or one a channel: the result is float32. None: uint8.
        max_pixels: refuse more, by the header. None: no limit.
        required: None is an error, instead of None.

    Returns:
        Transforms: path | bytes → uint8, or float32, [3, H, W].

    Raises:
        ConfigError: an argument cannot work, or two contradict each other.
    """
    if buckets is not None and not buckets:
        raise ConfigError("buckets=[] leaves an image no size: give (height, width) each, or leave it out")
    if size is None and fit != "cover":
        raise ConfigError(f"fit={fit!r} says how an image becomes a size=, and there is none")
    if buckets and (augment or size is not None):
        raise ConfigError("buckets= say the sizes and keep an image's shape: leave out size= and augment=")
    if augment and size is None:
        raise ConfigError("augment=True needs a size=")
    out = out or field
    flip = (0.5 if augment else 0.0) if flip is None else flip
    scaled = None if augment else size
    chain: list[Transform] = [
        DecodeImage(
            field, out, size=scaled, fit=fit, method=method, mode=mode, max_pixels=max_pixels, required=required
        )
    ]
    if augment and size is not None:
        chain.append(RandomResizedCrop(size, out, method=method))
    if buckets:
        chain.append(FitBucket(buckets, out, method=method))
    if flip:
        chain.append(FlipImage(out, p=flip))
    if normalize is not None:
        chain.append(NormalizeImage(out, mean=normalize[0], std=normalize[1], layout=layout))
    elif layout == "chw":
        chain.append(ChannelsFirst(out))
    return chain


def text_pipeline(
    field: str = "text",
    *,
    files: bool = False,
    random: bool = True,
    drop: float = 0.0,
    tokenizer: Any = None,
    seq_length: int | None = None,
    embedding_field: str | None = None,
    embedding_key: str | None = None,
    embedding_length: int | None = None,
) -> list[Transform]:
    """Make texts, and embeddings made of texts, ready to train on.

    Args:
        field: a text or several; a path or bytes with `files`.
        files: read the text from a file.
        random: one of several texts, or embeddings, at random; False: the first.
        drop: probability of "" in place of the text.
        tokenizer: makes `input_ids`, `labels` and `attention_mask`, int64 [seq_length], in place of the text; see
            `TokenizeText`. None: it stays a text.
        seq_length: of those.
        embedding_field: a field that holds a path, or bytes, of an array [T, D] or [N, T, D]: becomes float32 [T, D],
            with int64 [T] `<embedding_field>_mask`.
        embedding_key: which array of its file.
        embedding_length: cut or fill embeddings to so many rows.

    Raises:
        ConfigError: only one of `tokenizer` and `seq_length` is given; or embeddings have no field of their own.
    """
    if (tokenizer is None) != (seq_length is None):
        raise ConfigError("tokenizer= and seq_length= go together: give both or neither")
    if embedding_field is None and (embedding_key is not None or embedding_length is not None):
        raise ConfigError(
            "embedding_key= and embedding_length= say how embeddings are read: name their field too, by "
            "embedding_field="
        )
    if embedding_field == field:
        raise ConfigError(f"the text and its embeddings cannot both be in the field {field!r}")
    chain: list[Transform] = [ReadText(field)] if files else []
    chain.append(SampleText(field, random=random, drop=drop))
    if tokenizer is not None and seq_length is not None:
        chain.append(TokenizeText(tokenizer, seq_length, text_field=field))
    if embedding_field is not None:
        chain += text_latent_pipeline(embedding_field, key=embedding_key, length=embedding_length, random=random)
    return chain


def metadata_pipeline(
    *,
    json_field: str | None = None,
    pick: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    keep_if: Callable[[dict[str, Any]], Any] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    one_hot: Mapping[str, int] | None = None,
    dtypes: Mapping[str, str] | None = None,
    constants: Mapping[str, Any] | None = None,
    fields: Sequence[str] | None = None,
) -> list[Transform]:
    """Make metadata ready to train on; the steps come in the order of the arguments, those left out do nothing.

    Args:
        json_field: parse this field's JSON: a path, bytes or text.
        pick: new field → where it is in `json_field`, such as "objects.0.label".
        rename: old name → new name.
        keep_if: samples of which it is false are left out.
        classes: field → class names: names become numbers.
        one_hot: field → how many classes: numbers become vectors.
        dtypes: field → numpy type.
        constants: field → a value for every sample.
        fields: keep these, leave out the others.

    Raises:
        ConfigError: `pick` without `json_field`.

    >>> from penstock.transforms.chain import Chain
    >>> steps = metadata_pipeline(json_field="json", pick={"label": "kind"}, classes={"label": ["cat", "dog"]})
    >>> Chain(steps)({"json": '{"kind": "dog"}'}, epoch=0, id_=0)[0]["label"]
    1
    """
    if pick and json_field is None:
        raise ConfigError("pick= takes things out of a field with JSON: name it by json_field=")
    chain: list[Transform] = [LoadJson(json_field)] if json_field is not None else []
    chain += [PickSubfield(json_field or "", path, name) for name, path in (pick or {}).items()]
    if rename:
        chain.append(Rename(rename))
    if keep_if is not None:
        chain.append(Filter(keep_if))
    chain += [ClassId(name, names) for name, names in (classes or {}).items()]
    chain += [OneHot(name, count) for name, count in (one_hot or {}).items()]
    if dtypes:
        chain.append(Cast(dtypes))
    if constants:
        chain.append(Constants(constants))
    if fields is not None:
        chain.append(Gather(fields))
    return chain
