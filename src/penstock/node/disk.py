"""What the system's refusals to write mean, and what to do about them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import StoreError


@contextmanager
def store_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the system's errors while writing `path` into a StoreError that says what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise refused(path, error) from error


def refused(path: str | os.PathLike[str], error: OSError) -> StoreError:
    """Say that `path` can't be written, why, and what to do."""
    converted = StoreError(f"cannot write {os.fspath(path)}: {_advice(Path(path), error)}")
    converted.errno = error.errno
    return converted


def _advice(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk of {path.parent}; free some, then run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}; choose a folder you may write to, or change its permissions"
    if error.errno == errno.ENOENT:
        return f"the folder {path.parent} does not exist; create it first"
    return error.strerror or str(error)
