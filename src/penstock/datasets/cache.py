"""What is made once of a data file and kept: named by content, built by one process, awaited by the others.

    data file ──content_digest──▶ key ──▶ CACHE/key/…   built_once: one builds under a lock, the rest wait

No entry is named by a path or a time, so copies of a file share one and a changed file gets another.
All of it may be deleted while nobody uses it. The lock is the system's, on an open file: a builder
that is killed lets go of it, and the next one goes on with its parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path

from penstock.errors import BadManifest, ObjectChanged, ObjectMissing, StoreError
from penstock.formats.files import LOCK_NAME, digest, lock_folder, read_json, store_errors, write_json

FOLDER = ".penstock"
NOTE = "digest.json"
SEGMENT_BYTES = 4 << 20
HASH_THREADS = 8
POLL_S = 0.05
SETTLED_NS = 2_000_000_000
"""A file changed this shortly before it was hashed may change again without its times showing it."""


def open_cache(beside: Path, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Choose the cache folder for data in the folder `beside`, and make it.

    The one given; else `.penstock` in that folder; where that can't be written, `penstock` in the user's
    cache folder ($XDG_CACHE_HOME, ~/.cache).

    Raises:
        StoreError: the folder can't be made.
    """
    if cache_dir is None:
        with suppress(OSError):
            (beside / FOLDER).mkdir(exist_ok=True)
            if os.access(beside / FOLDER, os.W_OK | os.X_OK):
                return beside / FOLDER
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "penstock")
    with store_errors(cache_dir):
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
    return Path(cache_dir)


def content_digest(path: Path, cache: Path, *, timeout: float) -> str:
    """Hash a file's content to 32 hex digits, on all cores; remember it for as long as the file's times stay.

    Processes that ask together hash it once.

    Raises:
        ObjectMissing: there is no such file.
        ObjectChanged: it was written to meanwhile.
        StoreError: the cache can't be written, or another process made no progress for `timeout` seconds.

    Cost: about 1 s per GB and core when the file is new, else microseconds.
    """
    try:
        signature = _signature(path)
    except FileNotFoundError as error:
        raise ObjectMissing(f"{path} does not exist") from error
    folder = cache / f"{digest(os.fsencode(path.absolute()))}.digest"
    if (known := _noted(folder / NOTE, signature)) is not None:
        return known
    with store_errors(folder):
        folder.mkdir(exist_ok=True)
    with _turn(folder, timeout):
        if (known := _noted(folder / NOTE, signature)) is not None:
            return known
        found = _hash(path, signature[0], partial(os.utime, folder / LOCK_NAME))
        if _signature(path) != signature:
            raise ObjectChanged(f"{path} was written to while it was read: wait until it is whole, then try again")
        write_json(folder / NOTE, {"signature": signature, "digest": found})
    return found


def built_once(folder: Path, name: str, build: Callable[[Path, Callable[[], None]], None], *, timeout: float) -> Path:
    """Give the file `name` of a cache entry, built by exactly one of the processes and threads that ask.

    Args:
        folder: the entry; made if it is missing.
        name: the file that is published last, by renaming: the entry is whole if it exists.
        build: called with the file's path and a function to be called now and then while it gets on. It may
            find parts of a killed builder.
        timeout: seconds to wait for another builder from its last sign of life on.

    Raises:
        StoreError: the folder can't be written, or another builder made no progress for `timeout` seconds.
    """
    path = folder / name
    if path.is_file():
        return path
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder, timeout):
        if not path.is_file():
            build(path, partial(os.utime, folder / LOCK_NAME))
    return path


@contextmanager
def _turn(folder: Path, timeout: float) -> Iterator[None]:
    """Hold a folder's lock; wait for it as long as its holder gets on."""
    with ExitStack() as stack:
        seen, deadline = _activity(folder), time.monotonic() + timeout
        while True:
            try:
                stack.enter_context(lock_folder(folder))
                break
            except StoreError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                if (now := _activity(folder)) != seen:
                    seen, deadline = now, time.monotonic() + timeout
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"another process has been building {folder} for more than {timeout:g} s without any progress: "
                        "end it, or wait longer with timeout="
                    ) from error
                time.sleep(POLL_S)
        yield


def _activity(folder: Path) -> list[tuple[str, int, int]]:
    """Describe what is in a folder: it changes as long as someone works there."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                found.append((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
    return sorted(found)


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _noted(note: Path, signature: list[int]) -> str | None:
    """Give the digest that was noted for a file, if the file had settled then and has its times still."""
    try:
        known, noted_ns = read_json(note), note.stat().st_mtime_ns
    except (ObjectMissing, BadManifest, FileNotFoundError):
        return None
    if known.get("signature") != signature or noted_ns - max(signature[1:3]) < SETTLED_NS:
        return None
    found: str = known["digest"]
    return found


def _hash(path: Path, size: int, gets_on: Callable[[], None]) -> str:
    """Hash segments at the same time, then their digests; a few megabytes of memory for each thread."""
    whole = blake2b(f"{size}".encode(), digest_size=16, person=b"penstock-data-v1")
    threads = min(HASH_THREADS, os.cpu_count() or 1)
    wave = 16 * threads * SEGMENT_BYTES
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(threads) as pool:
            # In waves: all segments of a huge file at once would be a queue of hundreds of megabytes.
            for start in range(0, size, wave):
                segments = range(start, min(start + wave, size), SEGMENT_BYTES)
                for part in pool.map(partial(_hash_segment, descriptor), segments):
                    whole.update(part.encode())
                gets_on()
    finally:
        os.close(descriptor)
    return whole.hexdigest()


def _hash_segment(descriptor: int, start: int) -> str:
    return digest(os.pread(descriptor, SEGMENT_BYTES, start))
