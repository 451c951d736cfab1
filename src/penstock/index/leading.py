"""One process of a node does the work, the others wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import StoreError
from penstock.formats.files import lock_folder

_POLL_S = 0.02


@contextmanager
def leading(folder: Path, timeout_s: float) -> Iterator[None]:
    """Be the one process that builds in a folder, once whoever is before us has ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        lock = lock_folder(folder)
        try:
            lock.__enter__()
            break
        except StoreError as error:
            if error.errno is not None:
                raise
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another process has been building the index in {folder} for more than {timeout_s:g} s: see "
                    "whether it still works, or give it longer (timeout_s)"
                ) from None
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
