"""Every error penstock raises on purpose, in one tree.

A message says what was asked, what was found and what to do next. Where a built-in exception
already means the same thing, ours is also one of those, so `except FileNotFoundError` works.

    PenstockError
     ├ ConfigError(ValueError)   ├ StoreError(OSError)    ├ FormatError(ValueError)
     ├ PlanError(ValueError)     ├ LedgerError · StaleClaim   ├ SampleError
     └ LoaderTimeout(TimeoutError) · LoaderClosed · WorkerDied
"""

from __future__ import annotations

from collections.abc import Sequence


class PenstockError(Exception):
    """Root of all errors raised by penstock."""


class ConfigError(PenstockError, ValueError):
    """A value given by the caller cannot work: wrong type, out of range, or in conflict with another."""


class StoreError(PenstockError, OSError):
    """Bytes could not be read from, or written to, where they live."""


class ObjectMissing(StoreError, FileNotFoundError):
    """The object asked for does not exist."""


class AccessDenied(StoreError, PermissionError):
    """The store knows who is asking, or that nobody is, and refuses: a token or a permission is missing."""


class ObjectChanged(StoreError):
    """The object is no longer the one that was recorded."""


class StoreUnavailable(StoreError):
    """The store could not be reached, or kept failing, for as long as it was worth trying."""


class FormatError(PenstockError, ValueError):
    """Bytes are there but do not say what they should."""


class BadManifest(FormatError):
    """A manifest or side-car cannot be read, or contradicts the files it describes."""


class BadBlock(FormatError):
    """A data file is truncated, or its content differs from its checksum."""


class BadRecord(FormatError):
    """One record of a source cannot be used.

    Attributes:
        file: the source it came from.
        line: its number in that source, from 1: a line of text files, a row of tables, a document otherwise.
        reason: a short stable word, the one counted in side-cars ("malformed-json", "null", …).
    """

    def __init__(self, message: str, *, file: str, line: int, reason: str) -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class BadMedia(FormatError):
    """An image, a sound, a video or an array of numbers cannot be decoded, or is larger than allowed.

    Attributes:
        path: the file; for bytes in memory, how many there are.
        reason: a short stable word: "empty", "truncated", "not-an-image", "too-large", "corrupt", "missing", …
    """

    def __init__(self, message: str, *, path: str, reason: str) -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class PlanError(PenstockError, ValueError):
    """An order was asked for something outside its range."""


class StateMismatch(PlanError):
    """A saved state belongs to other data, or to another order of it."""


class LedgerError(PenstockError):
    """A claim or a completion could not be recorded."""


class StaleClaim(LedgerError):
    """A claim no longer holds: its lease has ended, or its chunk was opened again. The work does not count."""


class SampleError(PenstockError):
    """One sample could not be produced; the original error is `__cause__`.

    Attributes:
        dataset: name of the dataset's class.
        key: the sample's id.
        stage: "fetch", "transform" or "collate".
        reason: short word under which the failure is counted, see `reason_of`.
    """

    def __init__(self, message: str, *, dataset: str, key: int, stage: str, reason: str) -> None:
        super().__init__(message)
        self.dataset = dataset
        self.key = key
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def reason_of(error: BaseException) -> str:
    """Give the short word under which a failure is counted: an error's own reason, or else the name of its type.

    >>> reason_of(BadMedia("x.jpg ends early", path="x.jpg", reason="truncated")), reason_of(KeyError("x"))
    ('truncated', 'KeyError')
    """
    return error.reason if isinstance(error, BadMedia | BadRecord | SampleError) else type(error).__name__


class LoaderTimeout(PenstockError, TimeoutError):
    """A batch did not arrive within the loader's deadline."""


class LoaderClosed(PenstockError):
    """The loader was closed, or another iterator of it has taken over."""


class WorkerDied(PenstockError):
    """A worker process ended while it owed samples.

    Attributes:
        worker: index of the worker.
        exit_code: its exit status; negative is the number of the signal that ended it. None: unknown.
        ids: ids of the samples it was working on.
    """

    def __init__(self, message: str, *, worker: int, exit_code: int | None, ids: Sequence[int]) -> None:
        super().__init__(message)
        self.worker = worker
        self.exit_code = exit_code
        self.ids = list(ids)


def _rebuild(cls: type[PenstockError], args: tuple[object, ...], state: dict[str, object]) -> PenstockError:
    """Unpickle an error whose constructor takes keywords."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
