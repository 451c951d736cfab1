"""Who of a node's holders still lives: those that hold the lock on a file of their own.

The system gives a lock back however its owner ends, so what a killed process held need not wait for any
deadline. Whoever is merely slow, or stopped, keeps the lock.

    holders/4f1c…    locked: alive · not locked: gone · not there: unknown
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path

_presences: weakref.WeakSet[Presence] = weakref.WeakSet()


class Presence:
    """The locks of one folder's holders, those of this process and what can be told of others.

    Args:
        folder: where the files lie; made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        _presences.add(self)

    def announce(self, name: str, content: bytes = b"") -> None:
        """Show that a holder of this process lives, by a file that holds `content`; again and again costs nothing."""
        if name in self._files:
            return
        with self._lock:
            if name not in self._files:
                self._folder.mkdir(exist_ok=True)
                # It gets its name when it is locked: who finds it without a lock may take its owner for gone.
                unnamed = self._folder / f".{name}"
                file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                self._files[name] = file
                if content:
                    self._fill(unnamed, name, content)
                # Nobody else has the name, so nobody else can hold it; a file system without locks can't tell.
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(unnamed, self._folder / name)

    def _fill(self, path: Path, name: str, content: bytes) -> None:
        """Write all of a file that nobody knows yet, or leave none."""
        file = self._files[name]
        try:
            done = 0
            while done < len(content):
                done += os.pwrite(file, content[done:], done)
        except OSError:
            os.close(self._files.pop(name))
            os.unlink(path)
            raise

    def is_gone(self, name: str) -> bool:
        """Whether a holder has ended for certain."""
        try:
            file = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    def forget(self, name: str) -> None:
        """Remove the file of a holder that is gone, once nothing of it is left."""
        with suppress(OSError):
            # Not by way of pathlib, which is gone before us when the interpreter ends.
            os.unlink(f"{self._folder}/{name}")

    def close(self) -> None:
        """Let the holders of this process be gone."""
        with self._lock:
            while self._files:
                _, file = self._files.popitem()
                os.close(file)

    def __del__(self) -> None:
        # A holder that nobody has any more is gone, though its process lives.
        self.close()


def _after_fork_in_child() -> None:
    # The child's holders are new ones; with our copies of the parent's files closed, its locks end with it.
    for presence in list(_presences):
        presence._lock = threading.Lock()
        presence.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
