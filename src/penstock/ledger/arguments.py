"""What may be given to a tracker."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from penstock.errors import ConfigError
from penstock.ledger.ledger import Ledger
from penstock.ledger.sqlite import SqliteLedger
from penstock.types import check_int, check_number


def opened(state_file: str | os.PathLike[str] | Ledger) -> tuple[Ledger, Path | None]:
    """Give the ledger that `state_file` names or is, and its path if it is a file."""
    if isinstance(state_file, str | os.PathLike):
        ledger = SqliteLedger(state_file)
        return ledger, ledger.path
    if not hasattr(state_file, "introduce"):
        raise ConfigError(f"state_file must be a path or a ledger, got {state_file!r} ({type(state_file).__name__})")
    return state_file, None


def check_name(name: str, value: object) -> str:
    """Give the name of a brain or a dataset, if it is one."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a string that is not empty, got {value!r}")
    return value


def check_lease(lease_s: object) -> float:
    """Give the length of a lease, if it is one."""
    return check_number("lease_s", lease_s, above=0, unit="seconds")


def check_gpu_id(gpu_id: object) -> int | str:
    """Give who works on a chunk, if it is a name or a number."""
    if isinstance(gpu_id, bool) or not isinstance(gpu_id, int | str):
        raise ConfigError(f"gpu_id must be an integer or a string, got {gpu_id!r} ({type(gpu_id).__name__})")
    return gpu_id


def check_offset(sample_offset: object) -> int | None:
    """Give how far a chunk is, if somebody says so."""
    return None if sample_offset is None else check_int("sample_offset", sample_offset, minimum=0)


def check_offsets(offsets: Iterable[object]) -> list[tuple[int, int, int]]:
    """Give the (block, chunk, sample offset) of a checkpoint, as JSON may have kept them."""
    found = []
    for one in offsets:
        if not isinstance(one, list | tuple) or len(one) != 3:
            raise ConfigError(f"offsets are of (block, chunk, sample offset) each, got {one!r}")
        block, chunk, offset = (check_int("each of an offset's numbers", number, minimum=0) for number in one)
        found.append((block, chunk, offset))
    return found
