"""Tensors from .pt and .safetensors files, as numpy arrays. torch is imported when there is one to read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import numpy as np

from penstock.errors import BadMedia
from penstock.transforms.media import missing_extra


def read_torch(data: bytes | memoryview, path: str, *, max_bytes: int | None) -> dict[str, np.ndarray]:
    """Read a tensor (under the name ""), or a dict of tensors, that torch.save wrote.

    Raises:
        BadMedia: it holds something that is no tensor, number or container of these ("pickled"), is broken
            ("corrupt"), or takes more than `max_bytes` ("too-large").
    """
    import torch

    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise BadMedia(
            f"{path} holds more than tensors: reading it could run any code, so it is not read ({_first_line(error)})",
            path=path,
            reason="pickled",
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError, TypeError) as error:
        raise BadMedia(f"{path} can't be read by torch: {_first_line(error)}", path=path, reason="corrupt") from None
    tensors = loaded if isinstance(loaded, Mapping) else {"": loaded}
    # A few bytes can stand for a tensor of any size: strides may be 0, and sparse ones are mostly zeros.
    size = sum(value.numel() * value.element_size() for value in tensors.values() if isinstance(value, torch.Tensor))
    if max_bytes is not None and size > max_bytes:
        raise BadMedia(
            f"{path} holds tensors of {size:,} bytes, at most {max_bytes:,} are allowed", path=path, reason="too-large"
        )
    found = {str(name): _as_array(value) for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not found:
        raise BadMedia(
            f"{path} holds {type(loaded).__name__}, neither a tensor nor a dict of tensors",
            path=path,
            reason="not-arrays",
        )
    return found


def read_safetensors(data: bytes, path: str) -> dict[str, np.ndarray]:
    """Read the tensors of a .safetensors file.

    Raises:
        ConfigError: safetensors is not installed.
        BadMedia: the file is broken.
    """
    try:
        import safetensors
        from safetensors.torch import load
    except ImportError as error:
        raise missing_extra("latents", "safetensors", "reading .safetensors") from error
    try:
        tensors = load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise BadMedia(f"{path} is broken .safetensors: {_first_line(error)}", path=path, reason="corrupt") from None
    return {name: _as_array(tensor) for name, tensor in tensors.items()}


def _as_array(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.is_sparse or tensor.is_quantized:
        tensor = tensor.to_dense() if tensor.is_sparse else tensor.dequantize()
    narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if narrow else tensor).resolve_conj().resolve_neg().numpy()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
