"""What all media transforms share: a field that holds a path or bytes, and what its first bytes say it is.

Nothing is believed that a name says: a file is what its header says it is. Limits are checked on
what the header declares, before anything is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.errors import BadMedia, ConfigError, ObjectMissing, StoreError

MAX_PIXELS = 178_956_970
"""Most pixels of an image, as Pillow has it: 512 MiB of RGB."""

HEAD_BYTES = 64
"""How many bytes `sniff` looks at."""

_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"\x1aE\xdf\xa3", "webm"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"FLV\x01", "flv"),
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"%PDF-", "pdf"),
    (b"<svg", "svg"),
    (b"<?xml", "xml"),
)
_RIFF = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}
_BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heif", b"heix": "heif", b"mif1": "heif", b"msf1": "heif"}


def sniff(head: bytes | memoryview) -> str | None:
    """Say what a file is by its first bytes: at least `HEAD_BYTES` of them, or all there are.

    Returns:
        "jpeg", "png", "gif", "bmp", "tiff", "webp", "avif", "heif", "jp2", "pnm"; "wav", "flac", "ogg", "mp3", "aac";
        "mp4" (also .mov and .m4a), "webm" (also .mkv), "avi", "mpeg", "flv"; "npy", "zip" (also .npz and .pt), "gzip",
        "pdf", "svg", "xml", "html", "json", or None.

    >>> sniff(b"RIFF....WAVEfmt "), sniff(b"hello")
    ('wav', None)
    """
    head = bytes(head[:HEAD_BYTES])
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "mp4")
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3].isspace():
        return "pnm"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "aac" if head[1] & 0x06 == 0 else "mp3"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "json" if text.startswith((b"{", b"[")) else None


def describe(value: Any) -> str:
    """Name a value of a media field for a message: its path, or how many bytes it has."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    try:
        return f"<{memoryview(value).nbytes:,} bytes>"
    except TypeError:
        return f"<{type(value).__name__}>"


def read_bytes(value: Any, *, max_bytes: int | None = None) -> bytes | memoryview:
    """Give the bytes of a media field: of the file at a path, or as they are.

    Args:
        value: a path on this machine, or bytes (also bytearray, memoryview, uint8 arrays), which are not copied.
        max_bytes: refuse more than this, before reading.

    Raises:
        ConfigError: the value is neither.
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: there are no bytes ("empty"), or too many ("too-large").
    """
    if isinstance(value, str | os.PathLike):
        data: bytes | memoryview = _read_file(os.fspath(value), max_bytes)
    elif isinstance(value, bytes):
        data = value
    else:
        try:
            data = memoryview(value).cast("B")
        except TypeError:
            raise ConfigError(
                f"a media field holds a path or bytes, got {type(value).__name__}: was it decoded before?"
            ) from None
    _check_size(value, len(data), max_bytes)
    return data


def head_of(value: Any, count: int = HEAD_BYTES) -> bytes:
    """Give the first bytes of a media field, without reading the rest of a file; fewer if there are no more."""
    if isinstance(value, str | os.PathLike):
        try:
            with open(value, "rb", buffering=0) as file:
                return file.read(count)
        except OSError as error:
            raise unreadable(os.fspath(value), error) from error
    return bytes(read_bytes(value)[:count])


def take_field(sample: Mapping[str, Any], field: str, *, required: bool = False) -> Any:
    """Give what a sample has in a field; None if that is None and it may be.

    Raises:
        ConfigError: there is no such field.
        BadMedia: it is None and `required` ("missing").
    """
    try:
        value = sample[field]
    except KeyError:
        raise ConfigError(f"the sample has no field {field!r}, it has {sorted(map(str, sample))}") from None
    if value is None and required:
        raise BadMedia(f"the sample has nothing in its field {field!r}, which is required", path="", reason="missing")
    return value


def missing_extra(extra: str, package: str, what: str) -> ConfigError:
    """Make the error for a package that is not installed."""
    return ConfigError(f"{what} needs {package}: pip install 'penstock[{extra}]'")


def unreadable(path: str, error: OSError) -> StoreError:
    """Make the error for a file that can't be read."""
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(f"there is no file {path}")
    return StoreError(f"{path} cannot be read: {error.strerror or error}")


def check_finite(values: np.ndarray, path: str) -> None:
    """Refuse numbers that would spoil a training run.

    Raises:
        BadMedia: there are NaN or infinite values ("not-finite").
    """
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        count = values.size - int(np.isfinite(values).sum())
        raise BadMedia(
            f"{path} holds {count:,} values of {values.size:,} that are NaN or infinite: write it again, or pass "
            "check=False",
            path=path,
            reason="not-finite",
        )


def _read_file(path: str, max_bytes: int | None) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            if max_bytes is not None:
                _check_size(path, os.fstat(file.fileno()).st_size, max_bytes)
            return file.readall()
    except OSError as error:
        raise unreadable(path, error) from error


def _check_size(value: Any, size: int, max_bytes: int | None) -> None:
    path = describe(value)
    if not size:
        raise BadMedia(f"{path} is empty", path=path, reason="empty")
    if max_bytes is not None and size > max_bytes:
        raise BadMedia(f"{path} has {size:,} bytes, at most {max_bytes:,} are allowed", path=path, reason="too-large")
