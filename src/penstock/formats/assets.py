"""Bytes of samples as files beside their blocks.

    NAME/assets/3f/3fa9….png    named by its content; lines hold this path, relative to NAME

Named by content, the same bytes are one file, and what is written again after a crash takes the same
names: nothing is left over and nothing is there twice.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from penstock.formats.files import digest, store_errors

_SUFFIXES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".wav",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"%PDF": ".pdf",
}
"""What common files begin with."""


def keep_asset(folder: Path, content: bytes) -> str:
    """Write bytes as a file, unless they are there; give its path relative to the folder that holds `folder`.

    The file is whole wherever its name is seen, but a power cut may still take it, until `sync_assets`.

    Args:
        folder: the dataset's `assets`; made with the first file.
        content: what to write; what it begins with decides the name's suffix, .dat if that is nothing known.

    Raises:
        StoreError: the disk is full, or can't be written.
    """
    suffix = next((ending for magic, ending in _SUFFIXES.items() if content.startswith(magic)), ".dat")
    key = digest(content)
    path = folder / key[:2] / f"{key}{suffix}"
    with store_errors(path):
        # After a power cut there may be a name without its bytes: the name alone is no proof.
        if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    return f"{folder.name}/{key[:2]}/{path.name}"


def sync_assets(folder: Path) -> None:
    """Force to the disk what was kept: one call for all, where a sync of each would cost milliseconds."""
    if folder.is_dir():
        os.sync()
