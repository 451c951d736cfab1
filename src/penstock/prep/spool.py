"""Parts of remote files on the disk until what was made of them is safe.

    OUT/.penstock-spool/source.json          what the parts are of
    OUT/.penstock-spool/00000-0-327680       bytes [0, 327680) of file 0, and their CRC

A block that is not complete is lost in a crash, but the bytes it was made of are not: the next run finds
them here and asks the network only for the rest. A part takes its name when it is whole. It is not forced
to the disk, which would cost more than it saves: what a power cut garbles fails its CRC and is fetched again.
"""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.errors import BadManifest, ObjectMissing
from penstock.formats.files import read_json, store_errors, write_json

SPOOL_NAME = ".penstock-spool"
_CRC_BYTES = 4
_SOURCE = "source.json"


class Spool:
    """A folder of parts.

    Args:
        folder: the dataset's; the spool is made in it, and emptied if it is of another source.
        source: what identifies the source, as JSON.
    """

    def __init__(self, folder: Path, source: Any) -> None:
        self._folder = folder / SPOOL_NAME
        self._lock = threading.Lock()
        self.fetched_bytes = 0
        """Bytes that came over the network."""
        self.found_bytes = 0
        """Bytes that an earlier run had fetched."""
        if self._of() != source:
            self.remove()
        with store_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / _SOURCE, source)
        self._sizes = self._scan()

    def _of(self) -> Any:
        try:
            return read_json(self._folder / _SOURCE)
        except (ObjectMissing, BadManifest):
            return None

    def _scan(self) -> dict[tuple[int, int, int], bool]:
        """Find the parts there; what was being written is removed."""
        found = {}
        for path in self._folder.iterdir():
            words = path.name.split("-")
            if path.suffix == ".tmp":
                path.unlink(missing_ok=True)
            elif len(words) == 3 and all(word.isdecimal() for word in words):
                file, start, stop = map(int, words)
                found[file, start, stop] = False
        return found

    def _path(self, part: tuple[int, int, int]) -> Path:
        return self._folder / f"{part[0]:05d}-{part[1]}-{part[2]}"

    def ensure(self, file: int, start: int, stop: int, fetch: Callable[[int, int], bytes]) -> None:
        """Have bytes [start, stop) of a file here, fetching them if they are not.

        Raises:
            StoreError: they can't be fetched, or written.
        """
        part = (file, start, stop)
        if part in self._sizes and (self._sizes[part] or self._is_whole(part)):
            return
        data = fetch(start, stop)
        path = self._path(part)
        temporary = path.with_name(f"{path.name}.tmp")
        with store_errors(path):
            with open(temporary, "wb") as out:
                out.write(data)
                out.write(zlib.crc32(data).to_bytes(_CRC_BYTES, "little"))
            os.replace(temporary, path)
        with self._lock:
            self._sizes[part] = True
            self.fetched_bytes += stop - start

    def _is_whole(self, part: tuple[int, int, int]) -> bool:
        """Check a part that another run left."""
        try:
            content = self._path(part).read_bytes()
        except FileNotFoundError:
            content = b""
        data, crc = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
        whole = len(data) == part[2] - part[1] and zlib.crc32(data).to_bytes(_CRC_BYTES, "little") == crc
        with self._lock:
            self._sizes[part] = whole
            self.found_bytes += len(data) if whole else 0
        return whole

    def read(self, file: int, start: int, stop: int) -> bytes:
        """Read a part that is here."""
        with open(self._path((file, start, stop)), "rb", buffering=0) as stored:
            return stored.read(stop - start)

    def drop(self, file: int, before: int, keep_first: int) -> None:
        """Remove the parts of earlier files, and those of this one that end at or below `before`.

        Args:
            file: number of a file.
            before: offset in it; nothing below is needed again, but for
            keep_first: parts that begin below this offset.
        """
        with self._lock:
            gone = [
                part
                for part in self._sizes
                if part[0] < file or (part[0] == file and part[2] <= before and part[1] >= keep_first)
            ]
            for part in gone:
                del self._sizes[part]
        for part in gone:
            self._path(part).unlink(missing_ok=True)

    @property
    def size_bytes(self) -> int:
        """Bytes that the parts take."""
        with self._lock:
            return sum(stop - start for _, start, stop in self._sizes)

    def remove(self) -> None:
        """Remove the spool and all in it."""
        shutil.rmtree(self._folder, ignore_errors=True)
