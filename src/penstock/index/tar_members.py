"""Tar archives by member: where the bytes of each file lie, read from the headers alone.

    header │ content, padded to 512 │ header │ content │ … │ two blocks of zeros

Law: an archive that does not come to its proper end is refused, as its rest may be missing. Archives that
are compressed, and members that are sparse, have no bytes to point to: refused too.

The headers of a remote archive are read through windows. A member longer than SKIP is jumped over; a shorter
one costs less to read than the round trip that jumping takes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from penstock.errors import BadBlock
from penstock.store.urls import redact

BLOCK = 512
SKIP = 512 << 10
"""Content that is jumped over; less is read: about what a stream of several brings during a round trip."""
FIRST_WINDOW, WINDOW = 16 << 10, 1 << 20
"""Bytes read after a jump, and at most at a time once members turn out to be small."""
_LONGEST_EXTENSION = 1 << 20
_ZEROS = bytes(BLOCK)
_MAGIC, _CHECKSUM = slice(257, 262), slice(148, 156)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_GNU_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_NO_FILES = (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V", b"D")
_LONGEST_MAGIC = 8
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class Member(NamedTuple):
    """A file in an archive: its content is bytes [offset, offset + length) of it."""

    name: str
    offset: int
    length: int


def iter_members(file: Any, size: int, place: str, *, skip: int = SKIP) -> Iterator[Member]:
    """Read where the files of an archive lie, in order; a hard link lies where the file does that it links to.

    Args:
        file: binary, with `seek` and `read`.
        size: its bytes.
        place: what errors call it.
        skip: longest content that is read rather than jumped over.

    Raises:
        BadBlock: it is truncated, damaged or compressed, or holds sparse files or symbolic links.
        StoreError: it can't be read.

    Cost: 10 µs a member, and reading what is not jumped over.
    """
    return _Headers(file, size, redact(place), skip).members()


class _Headers:
    """Reads the headers of one archive, one after another."""

    def __init__(self, file: Any, size: int, place: str, skip: int) -> None:
        self._file, self._size, self._place, self._skip = file, size, place, skip
        self._start, self._window, self._grown = 0, b"", FIRST_WINDOW
        self._at = 0
        self._everywhere: dict[str, str] = {}
        self._ahead: dict[str, str] = {}

    def members(self) -> Iterator[Member]:
        links: dict[str, Member] = {}
        ended = False
        if self._size:
            self._check_uncompressed()
        while self._at < self._size:
            block = self._read(self._at, BLOCK)
            ended = block == _ZEROS
            if ended:
                # Archives written one behind the other: what follows the end of the first is another.
                self._at += BLOCK
                continue
            member = self._next(block, links)
            if member is not None:
                links[member.name] = member
                yield member
        if not ended:
            raise self._bad(
                f"ends at byte {self._size:,} without the zeros that close an archive: it was truncated; fetch or "
                "write it again"
            )

    def _next(self, block: bytes, links: dict[str, Member]) -> Member | None:
        """Read a header and go to the next; None if it describes no file."""
        content = self._at + BLOCK
        plain = None if self._ahead or self._everywhere else _plain(block)
        if plain is not None and content + plain[1] <= self._size:
            name, length = plain
            self._at = content + -(-length // BLOCK) * BLOCK
            return Member(name, content, length)
        header = self._header(block)
        said = self._everywhere | self._ahead
        length = self._length(header, said if header.type in _REGULAR else {})
        self._at = content + -(-length // BLOCK) * BLOCK
        if header.type in _PAX:
            self._ahead |= self._pax(content, length)
        elif header.type == tarfile.XGLTYPE:
            self._everywhere |= self._pax(content, length)
        elif header.type in _GNU_NAMES:
            self._ahead[_GNU_NAMES[header.type]] = _text(self._read(content, length).rstrip(b"\0"))
        else:
            self._ahead = {}
            return self._member(header, said, content, length, links)
        return None

    def _check_uncompressed(self) -> None:
        start = self._read(0, min(_LONGEST_MAGIC, self._size))
        kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
        if kind is not None:
            raise self._bad(f"is compressed with {kind}, so no member can be read alone: uncompress it")

    def _header(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._bad(
                f"has no header of a member at byte {self._at:,} ({error}): it is damaged, or no tar"
            ) from None

    def _length(self, header: tarfile.TarInfo, said: dict[str, str]) -> int:
        """Give the bytes of content behind a header, all of which must be there."""
        length = header.size
        if header.type in _NO_FILES or header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            return 0
        if "size" in said:
            if not said["size"].isdecimal():
                raise self._bad(f"says that {header.name!r} has {said['size']!r} bytes: it is damaged; fetch it again")
            length = int(said["size"])
        if self._at + BLOCK + length > self._size:
            raise self._bad(
                f"is truncated: the member {header.name!r} would end at byte {self._at + BLOCK + length:,} of "
                f"{self._size:,}; fetch or write it again"
            )
        return length

    def _member(
        self, header: tarfile.TarInfo, said: dict[str, str], content: int, length: int, links: dict[str, Member]
    ) -> Member | None:
        name = said.get("path", header.name)
        if header.type in _REGULAR:
            if any(key.startswith("GNU.sparse.") for key in said):
                raise self._sparse(said.get("GNU.sparse.name", name))
            # Old archives mark folders by their names alone.
            return None if name.endswith("/") else Member(name, content, length)
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise self._sparse(name)
        if header.type == tarfile.LNKTYPE:
            target = said.get("linkpath", header.linkname)
            if target not in links:
                raise self._bad(f"has the hard link {name!r} to {target!r}, which is not in it before: write it again")
            return links[target]._replace(name=name)
        if header.type == tarfile.SYMTYPE:
            raise self._bad(f"has the symbolic link {name!r}: write it again with the file in its place (tar -h)")
        if header.type in _NO_FILES:
            return None
        raise self._bad(f"has the member {name!r} of the unknown type {header.type!r}: write it again as a plain tar")

    def _sparse(self, name: str) -> BadBlock:
        return self._bad(
            f"holds {name!r} as a sparse file, whose bytes are not in one piece: write it without --sparse"
        )

    def _pax(self, content: int, length: int) -> dict[str, str]:
        """Read the records `LENGTH KEY=VALUE` of an extended header."""
        data, found, at = self._read(content, length), {}, 0
        while at < len(data) and data[at]:
            digits = data[at : data.find(b" ", at)]
            end = at + int(digits) if digits.isdigit() else at
            key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
            if end <= at or end > len(data) or not equals:
                raise self._bad(f"has a damaged extended header at byte {content + at:,}: fetch or write it again")
            found[_text(key)] = _text(value)
            at = end
        return found

    def _read(self, at: int, length: int) -> bytes:
        """Read a header, or the extension of one, from the window it lies in."""
        if length > _LONGEST_EXTENSION:
            raise self._bad(f"has an extended header of {length:,} bytes at byte {at:,}: it is damaged")
        end = self._start + len(self._window)
        if at + length > end:
            if at + length > self._size:
                raise self._bad(f"is truncated in the header at byte {at:,} of {self._size:,}; fetch or write it again")
            if at - end > self._skip:
                self._start, self._window, self._grown = at, b"", FIRST_WINDOW
                self._file.seek(at)
            self._fill(at, length)
        return self._window[at - self._start : at - self._start + length]

    def _fill(self, at: int, length: int) -> None:
        """Read on until a header is there, forgetting what lies before it."""
        end = self._start + len(self._window)
        while end < at + length:
            data = self._file.read(min(self._grown, self._size - end))
            self._grown = min(2 * self._grown, WINDOW)
            if not data:
                raise self._bad(f"is shorter than the {self._size:,} bytes it had: read it again when it is written")
            kept = self._window[max(0, at - self._start) :]
            self._window, self._start = kept + data, end - len(kept)
            end += len(data)

    def _bad(self, what: str) -> BadBlock:
        return BadBlock(f"the tar {self._place} {what}")


def _plain(block: bytes) -> tuple[str, int] | None:
    """Read the name and size in the header of a file, if it is of the form that nearly all have; None if it is not."""
    if block[156] not in b"0\0" or block[_MAGIC] != b"ustar" or block[345] or block[124] & 0x80:
        return None
    try:
        length, checksum = int(block[124:136].rstrip(b" \0"), 8), int(block[_CHECKSUM].rstrip(b" \0"), 8)
    except ValueError:
        return None
    # The checksum counts itself as eight spaces.
    if sum(block) - sum(block[_CHECKSUM]) + 256 != checksum:
        return None
    name = _text(block[:100].partition(b"\0")[0])
    return None if name.endswith("/") else (name, length)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
