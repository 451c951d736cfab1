"""Files that belong together become rows: one a sample, one column an extension.

    a/0001.mp4, a/0001.summary.json, a/0002.mp4
        ──▶  index "a/0001": mp4 "a/0001.mp4", summary.json "a/0001.summary.json"
             index "a/0002": mp4 "a/0002.mp4", summary.json None

A sample's key is its files' path up to the first dot of the name; the rest of the name is the column. The
column `NAME__length` beside a column holds the bytes of each file, and for parts of larger objects
`NAME__offset` where they begin.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.errors import FormatError
from penstock.store.urls import redact

MAX_COLUMNS = 256
"""More than this many extensions are no extensions, but names with dots in them."""
MANY_COLUMNS = 32
"""So many files of one sample that end alike are probably samples of their own, whose names have dots in them."""
OFFSET, LENGTH = "__offset", "__length"
"""What the names of the columns end in that say which bytes of its object a value of another column means."""


def split_name(path: str) -> tuple[str, str] | None:
    """Take a path apart into a sample's key and the name of a column; None if it belongs to no sample.

    Hidden files, files in hidden folders, and files without an extension belong to none.

    >>> split_name("a/b.c/0001.summary.json"), split_name("./0001.jpg")
    (('a/b.c/0001', 'summary.json'), ('0001', 'jpg'))
    >>> split_name("a/README"), split_name(".git/config.txt"), split_name("a/.thumbs.db")
    (None, None, None)
    """
    while path.startswith("./"):
        path = path[2:]
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    if not stem or not extension or ("." in folder and _is_hidden(folder)):
        return None
    return f"{folder}{slash}{stem}", extension


def _is_hidden(folder: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in folder.split("/"))


class Grouping:
    """The files of one source, by sample and column.

    Args:
        place: where they come from, for errors.
        parts: whether files are parts of larger objects, which have an offset.
    """

    def __init__(self, place: str, *, parts: bool = False) -> None:
        self.place = redact(place)
        self.parts = parts
        self.rows: dict[str, int] = {}
        self.columns: dict[str, _Column] = {}

    def add(self, path: str, location: str, length: int, offset: int = 0) -> bool:
        """Add a file, unless it belongs to no sample; tell whether it does.

        Args:
            path: its name, which says the sample and the column.
            location: where its bytes are, as the index shall say it.
            length: how many they are.
            offset: where they begin there.

        Raises:
            FormatError: its name can't be a key; or too many extensions.
        """
        named = split_name(path)
        if named is None:
            return False
        key, extension = named
        if "\0" in path:
            raise FormatError(f"{path!r} in {self.place} has a NUL in its name: rename it")
        column = self.columns.get(extension)
        if column is None:
            column = self._new_column(extension, path)
        column.rows.append(self.rows.setdefault(key, len(self.rows)))
        column.locations.append(location)
        column.lengths.append(length)
        column.offsets.append(offset)
        return True

    def _new_column(self, extension: str, path: str) -> _Column:
        if len(self.columns) == MAX_COLUMNS:
            raise FormatError(
                f"the files of {self.place} have more than {MAX_COLUMNS} extensions, the latest is {extension!r} of "
                f"{path!r}: what follows the first dot of a name is its extension, so name files without other dots"
            )
        column = self.columns[extension] = _Column()
        return column


class _Column:
    """The files of one extension, in the order they came."""

    __slots__ = ("lengths", "locations", "offsets", "rows")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.locations: list[str] = []
        self.lengths: list[int] = []
        self.offsets: list[int] = []


def grouped_table(groupings: Sequence[Grouping], key_column: str, *, by_key: bool) -> pa.Table:
    """Make a table of the samples of several sources.

    Extensions that differ in nothing but case are one column, in small letters.

    Args:
        groupings: what was found; samples of one key in two of them are not joined.
        key_column: name of the column of keys.
        by_key: sort the rows by key, else they stay in the order in which samples were begun.

    Returns:
        A pyarrow Table: `key_column`, then by name each extension and what belongs to it. None is null.

    Raises:
        FormatError: a sample has two files for one column; or names are not UTF-8 or clash with other columns.
    """
    spellings: dict[str, set[str]] = {}
    for grouping in groupings:
        for extension in grouping.columns:
            spellings.setdefault(extension.lower(), set()).add(extension)
    names = {
        spelling: lower if len(several) > 1 else spelling
        for lower, several in spellings.items()
        for spelling in several
    }
    _check_names(sorted(set(names.values())), key_column, groupings)
    for grouping in groupings:
        _warn_of_dots(grouping)
    tables = [_table_of(grouping, names, key_column) for grouping in groupings]
    if by_key:
        tables = [table.sort_by(key_column) for table in tables]
    return pa.concat_tables(tables)


def _warn_of_dots(grouping: Grouping) -> None:
    """Say so if samples seem to have become columns of others, as photo.001.jpg and photo.002.jpg do."""
    if len(grouping.columns) < MANY_COLUMNS:
        return
    alike: dict[str, list[str]] = {}
    for extension in grouping.columns:
        _, dot, last = extension.rpartition(".")
        if dot:
            alike.setdefault(last, []).append(extension)
    for last, extensions in alike.items():
        if len(extensions) < MANY_COLUMNS:
            continue
        counts = np.bincount(np.concatenate([grouping.columns[extension].rows for extension in extensions]))
        row = int(counts.argmax())
        if counts[row] >= MANY_COLUMNS:
            key = next(key for key, place in grouping.rows.items() if place == row)
            example = next(extension for extension in extensions if row in grouping.columns[extension].rows)
            warnings.warn(
                f"the sample {key!r} of {grouping.place} has {counts[row]:,} files that end in .{last}, such as "
                f"{key}.{example}: what follows the first dot of a name says the column. If they are samples of "
                "their own, name them without other dots",
                stacklevel=2,
            )
            return


def _check_names(names: Sequence[str], key_column: str, groupings: Sequence[Grouping]) -> None:
    taken = {key_column} | {name + ending for name in names for ending in (OFFSET, LENGTH)}
    clash = next((name for name in names if name in taken), None)
    if clash is not None:
        raise FormatError(
            f"files of {groupings[0].place} have the extension {clash!r}, and a column of that name is there for "
            "something else: rename them, or the column of keys (index_col_name)"
        )


def _table_of(grouping: Grouping, names: dict[str, str], key_column: str) -> pa.Table:
    keys = list(grouping.rows)
    found: dict[str, pa.Array] = {key_column: _strings(keys, grouping)}
    members: dict[str, list[_Column]] = {name: [] for name in sorted(set(names.values()))}
    for extension, column in grouping.columns.items():
        members[names[extension]].append(column)
    for name, columns in members.items():
        rows = np.array([row for column in columns for row in column.rows], np.int64)
        _check_once(rows, keys, name, columns, grouping)
        where = np.full(len(keys), -1, np.int64)
        where[rows] = np.arange(len(rows))
        taken = pa.array(where, mask=where < 0)
        locations = [location for column in columns for location in column.locations]
        found[name] = _strings(locations, grouping).take(taken)
        if grouping.parts:
            found[name + OFFSET] = _integers([column.offsets for column in columns]).take(taken)
        found[name + LENGTH] = _integers([column.lengths for column in columns]).take(taken)
    return pa.table(found)


def _check_once(rows: np.ndarray, keys: list[str], name: str, columns: list[_Column], grouping: Grouping) -> None:
    counts = np.bincount(rows, minlength=1)
    if not len(rows) or counts.max() < 2:
        return
    row = int(np.flatnonzero(counts > 1)[0])
    places = [place for place, other in enumerate(rows.tolist()) if other == row]
    locations = [location for column in columns for location in column.locations]
    offsets = [offset for column in columns for offset in column.offsets]
    told = [f"{locations[p]} at byte {offsets[p]:,}" if grouping.parts else locations[p] for p in places]
    raise FormatError(
        f"the sample {keys[row]!r} of {grouping.place} has {len(places)} files of extension {name!r}: "
        f"{', '.join(told[:3])}. A sample has one file a column: rename or remove the others"
    )


def _strings(values: list[str], grouping: Grouping) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        wrong = error.object
        raise FormatError(f"the name {wrong!r} in {grouping.place} is not UTF-8: rename the file") from None


def _integers(pieces: list[list[int]]) -> pa.Array:
    return pa.array(np.array([value for piece in pieces for value in piece], np.int64))
