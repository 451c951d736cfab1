"""Files that are either there and whole, or not there.

Law: nothing half-written is ever read. A file is written beside its place under another name, its
bytes are forced to the disk, and only then it takes its name; then the folder is forced to the disk
too, so a power cut after the return leaves the file. What is being written, a file or a folder, is locked
by an open descriptor, which the system gives back however its owner ends.
"""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from penstock.errors import BadManifest, ObjectMissing, StoreError
from penstock.node.disk import store_errors as store_errors

LOCK_NAME = ".penstock.lock"
TOKEN_BYTES = 6


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, synced: bool = True) -> Iterator[BinaryIO]:
    """Open a file that appears at `path`, whole, when the block ends without an error.

    Readers see the file there before, or the new one, never a part. The file is synced to the disk
    before it takes its name. On an error the temporary file is removed and `path` is untouched.

    Args:
        path: where to write; its folder must exist.
        synced: False leaves it to the system when it goes to the disk; after a crash of the system the file may be
            anything, so whoever reads it has to know of the crash.

    Yields:
        A binary file open for writing.

    Raises:
        StoreError: the folder is missing, may not be written, or its disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        with store_errors(path):
            temporary, opened = _begun(path)
            # Open, and so locked, until it has its name: whoever sweeps takes what nobody holds for abandoned.
            with opened as file:
                yield file
                file.flush()
                if synced:
                    os.fsync(file.fileno())
                    publish(temporary, path)
                else:
                    os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def _begun(path: Path) -> tuple[Path, BinaryIO]:
    """Open a file beside `path` under a name of its own, locked where the file system knows locks."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN_BYTES)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115 - it is given to who writes it
        try:
            if _is_ours(file):
                return temporary, file
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        file.close()


def _is_ours(file: BinaryIO) -> bool:
    """Lock a file just made, unless whoever sweeps came between its making and its lock."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Where there are no locks nobody takes it for abandoned either.
        return True
    return os.path.exists(file.name)


def remove_abandoned(path: str | os.PathLike[str]) -> int:
    """Remove what processes that were killed in an `atomic_write` of `path` have left; give how many there were.

    What anybody is writing stays, and so does all of it where the file system knows no locks, or nothing may be
    removed.
    """
    import fcntl

    path, count = Path(path), 0
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * TOKEN_BYTES}.tmp"):
        with suppress(OSError), open(left, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(left)
            count += 1
    return count


def publish(temporary: Path, path: Path) -> None:
    """Give a finished and synced file its name, replacing what is there, and sync the folder."""
    with store_errors(path):
        os.replace(temporary, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk; a no-op where folders can't be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented UTF-8 JSON, atomically; keys keep their order.

    Raises:
        StoreError: see `atomic_write`.
    """
    with atomic_write(path) as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        ObjectMissing: there is no such file.
        BadManifest: it is not JSON: truncated, or something else.
    """
    try:
        return orjson.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise ObjectMissing(f"{os.fspath(path)} does not exist") from error
    except orjson.JSONDecodeError as error:
        raise BadManifest(
            f"{os.fspath(path)} is not valid JSON ({error}): it was truncated or overwritten; restore or rebuild it"
        ) from error


def digest(data: Any) -> str:
    """Hash bytes, or any contiguous buffer, to 32 hex digits (blake2b-128).

    >>> digest(b"water")
    'e45f2c90d86bf5aaabc6d8d7efdfbca1'
    """
    return blake2b(data, digest_size=16).hexdigest()


@contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for the length of the block, against every other process and thread that asks.

    The lock is the system's, on an open file (`.penstock.lock`), so it ends with its owner, killed or
    not. A file left by a killed owner is not a lock: the next one takes it over and removes it.

    Raises:
        StoreError: another process holds the folder, or the folder can't be written.
    """
    path = Path(folder) / LOCK_NAME
    with store_errors(path):
        descriptor = _locked(path)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _locked(path: Path) -> int:
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before us may have removed the name between our open and our lock: then what we hold
            # is nobody's file, and a third process could lock a new one.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise StoreError(
                f"another process is writing to {path.parent}; wait until it ends, or choose another folder"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
