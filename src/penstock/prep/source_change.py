"""A source must be the same while it is read, and when reading goes on after an interruption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from penstock.errors import ObjectChanged
from penstock.formats.sources import SourceFile, source_file


def refuse_change(files: Sequence[SourceFile]) -> None:
    """Look again at the local files of a source, after reading them.

    Raises:
        ObjectChanged: one is not as it was when it was found.
    """
    for file in files:
        if file.url is None and source_file(file.path, name=file.name, kind=file.kind).signature != file.signature:
            raise ObjectChanged(f"{file.path} changed while it was read; run again when nothing writes to it")


def refuse_other_files(begun: Sequence[Any], now: Sequence[Any], out: str | os.PathLike[str]) -> None:
    """Compare the files that were read so far with those to be read on, by their signatures.

    Args:
        begun: name, size, and time of change or etag of each file, as an earlier run recorded them.
        now: as they are now.
        out: what is made of them, for the message.

    Raises:
        ObjectChanged: they differ; names the first file.
    """
    before, after = ({row[0]: list(row) for row in files} for files in (begun, now))
    gone = next((name for name in before if name not in after), None)
    new = next((name for name in after if name not in before), None)
    changed = next((name for name in before if name in after and before[name] != after[name]), None)
    if before and after and not before.keys() & after.keys():
        raise ObjectChanged(
            f"{os.fspath(out)} was begun from another source, from {next(iter(before))} and not "
            f"{next(iter(after))}: choose another folder"
        )
    if changed is not None:
        how = "has another size" if before[changed][1] != after[changed][1] else "was written to"
        what = f"{changed} {how}"
    elif gone is not None or new is not None:
        what = f"{gone} is gone" if gone is not None else f"{new} is new"
    elif list(map(list, begun)) != list(map(list, now)):
        what = f"its files come in another order, {next(iter(after), '')} first"
    else:
        return
    raise ObjectChanged(
        f"the source of {os.fspath(out)} changed since the run that began it: {what}; restore it, or choose another "
        "folder"
    )
