"""Arrays from files: .npy, .npz, .safetensors, .pt. Which it is, its first bytes say.

Nothing is ever unpickled: arrays of objects are refused, and .pt is read by torch's reader of plain
tensors. Sizes are checked against the bytes that are there before memory is taken.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.errors import BadMedia
from penstock.transforms.media import describe, read_bytes, sniff

MAX_BYTES = 1 << 30


def read_arrays(value: Any, *, max_bytes: int | None = MAX_BYTES) -> dict[str, np.ndarray]:
    """Read all arrays of a file, at a path or in bytes; name → array. That of an .npy file, or of a bare tensor, is "".

    Args:
        value: the path, or the bytes.
        max_bytes: most bytes of the file, and of the arrays in it once unpacked. None: no limit.

    Returns:
        Arrays of numbers, writable or not; bfloat16, which numpy lacks, becomes float32.

    Raises:
        BadMedia: "empty", "too-large", "truncated", "corrupt", "pickled" (it would run code to be read), or
            "not-arrays".
        ConfigError: .safetensors without `penstock[latents]`.
        ObjectMissing, StoreError: there is no such file, or it can't be read.
    """
    path = describe(value)
    data = read_bytes(value, max_bytes=max_bytes)
    kind = sniff(data)
    if kind == "npy":
        return {"": _from_npy(data, path)}
    if kind == "zip":
        return _from_zip(data, path, max_bytes)
    if len(data) > 8 and _is_safetensors(data):
        from penstock.transforms.tensor_files import read_safetensors

        return read_safetensors(bytes(data), path)
    if data[:1] == b"\x80":
        raise _pickled(path, "a pickle")
    raise BadMedia(
        f"{path} holds no arrays: it is none of .npy, .npz, .safetensors and .pt"
        + (f", its first bytes are those of {kind}" if kind else ""),
        path=path,
        reason="not-arrays",
    )


def _from_npy(data: bytes | memoryview, path: str) -> np.ndarray:
    """Read an .npy file without copying its numbers."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read_header(file)
    except (ValueError, EOFError, struct.error, SyntaxError, TypeError) as error:
        raise BadMedia(f"{path} has a broken .npy header: {error}", path=path, reason="corrupt") from None
    if dtype.hasobject:
        raise _pickled(path, "an array of Python objects")
    count = 1
    for length in shape:
        count *= length
    if count < 0 or count * dtype.itemsize > len(data) - file.tell():
        raise BadMedia(
            f"{path} says that it holds {dtype} {list(shape)}, which takes {count * dtype.itemsize:,} bytes, and has "
            f"{len(data) - file.tell():,}",
            path=path,
            reason="truncated",
        )
    values = np.frombuffer(data, dtype, count, offset=file.tell())
    return values.reshape(shape, order="F" if by_column else "C")


def _from_zip(data: bytes | memoryview, path: str, max_bytes: int | None) -> dict[str, np.ndarray]:
    """Read an .npz file, or a .pt file of torch, which is a zip as well."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if max_bytes is not None and size > max_bytes:
                raise BadMedia(
                    f"{path} says that it unpacks to {size:,} bytes, at most {max_bytes:,} are allowed",
                    path=path,
                    reason="too-large",
                )
            if any(member.filename.endswith("/data.pkl") for member in members):
                from penstock.transforms.tensor_files import read_torch

                return read_torch(data, path, max_bytes=max_bytes)
            names = [member.filename for member in members]
            if not names or not all(name.endswith(".npy") for name in names):
                raise BadMedia(f"{path} is a zip, but neither .npz nor .pt", path=path, reason="not-arrays")
            return {name.removesuffix(".npy"): _from_npy(archive.read(name), f"{path}[{name}]") for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise BadMedia(f"{path} is a broken zip: {error}", path=path, reason="corrupt") from None


def _is_safetensors(data: bytes | memoryview) -> bool:
    """Whether bytes begin as .safetensors does: the length of a JSON object, and the object."""
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8 or bytes(data[8:9]) != b"{":
        return False
    try:
        return isinstance(json.loads(bytes(data[8 : 8 + length])), Mapping)
    except ValueError:
        return False


def _pickled(path: str, what: str) -> BadMedia:
    return BadMedia(
        f"{path} is {what}: reading it could run any code, so it is not read; save plain arrays (.npy, .npz, "
        ".safetensors, or tensors by torch.save)",
        path=path,
        reason="pickled",
    )
