"""Objects of any size written to a store: sent in parts while the next is made, there whole or not at all.

    block: write · write · write ──parts──▶ store, under no name ──end of the block──▶ the object

All parts but the last are alike, as some stores want them. A process holds at most PARTS + 1 of 16 MiB, and two of
those that are larger than 64. One that is killed leaves parts that no reader sees; clouds throw them away by a rule
for incomplete uploads.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from penstock.errors import ConfigError, ObjectMissing, StoreError, StoreUnavailable
from penstock.store import objects
from penstock.store.failures import AbortFailed, BucketMissing
from penstock.store.requests import Transient
from penstock.types import check_int

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import ObjectStore

PART_BYTES = 16 << 20
PARTS = 4
MOST_PARTS = 10_000
"""Of an object, as clouds have it: 156 GiB of the usual ones."""
MOST_BYTES = 5 << 40
"""Of an object, as clouds have it."""
TRIAL_BYTES = 5 << 20
"""The least that a part may have which is not the last."""
TRIAL_S = 30.0
STEP_BYTES = 1 << 20

Step = Callable[[Callable[[], Awaitable[None]]], None]
"""Carries out a piece of work on the background thread and waits for it; raises in terms of the object."""


def part_bytes_of(num_bytes: int | None) -> int:
    """Give the size of the parts of an object: 16 MiB, or as many whole MiB as keep them to 10,000.

    Args:
        num_bytes: how large the object may become; None: that is not known.

    Raises:
        ConfigError: no cloud holds such an object.

    >>> [part_bytes_of(num_bytes) >> 20 for num_bytes in (None, 100 << 30, 200 << 30, 5 << 40)]
    [16, 16, 21, 525]
    """
    if num_bytes is None:
        return PART_BYTES
    check_int("num_bytes", num_bytes, minimum=0)
    if num_bytes > MOST_BYTES:
        raise ConfigError(f"num_bytes is {num_bytes:,}, and clouds hold objects of at most 5 TiB: write several")
    return max(PART_BYTES, -(-num_bytes // (MOST_PARTS << 20)) << 20)


@contextmanager
def uploading(client: ObjectStore, key: str, step: Step, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Send an object in parts; see `Store.upload`.

    Args:
        client: sends the parts, each again by itself if that can help.
        key: of the object.
        step: carries out what is asked of the client.
        num_bytes: how large the object may become; None: that is not known.
    """
    part_bytes = part_bytes_of(num_bytes)
    writer = objects.open_upload(client, key, part_bytes, max(1, PARTS * PART_BYTES // part_bytes))
    parts = _Parts(writer, step, part_bytes)
    file = io.BufferedWriter(parts, STEP_BYTES)
    notes: list[str] = []
    try:
        yield cast(BinaryIO, file)
        if not file.closed:
            file.flush()
        step(partial(_complete, client, key, writer, parts, notes))
    except BaseException as error:
        # The error that ended the block is the one to tell; what this leaves, no reader sees.
        with suppress(StoreError):
            step(partial(_throw_away, writer, notes))
        for note in notes:
            error.add_note(note)
        raise
    finally:
        parts.ended = True
        file.close()


async def _throw_away(writer: AsyncWritableFile, notes: list[str]) -> None:
    try:
        await objects.abandon(writer)
    except AbortFailed as error:
        notes.append(_left(error))


def _left(error: AbortFailed) -> str:
    return f"what was sent before could not be thrown away ({error}): a rule for incomplete uploads does that in time"


async def _complete(client: ObjectStore, key: str, writer: AsyncWritableFile, parts: _Parts, notes: list[str]) -> None:
    """Give an upload its name, and find out whether it has it where the answer was lost on its way."""
    if parts.num_bytes < parts.part_bytes:
        # It goes in one request, which may be made again.
        return await objects.complete(writer)
    before = await _facts(client, key)
    try:
        return await objects.complete(writer)
    except BucketMissing:
        raise
    except (ObjectMissing, Transient) as error:
        now = await _facts(client, key)
        refusal = next((facts for facts in (before, now) if isinstance(facts, StoreError)), None)
        if refusal is None and now is not None and now != before and now[0] == parts.num_bytes:  # type: ignore[index]
            return None
        if isinstance(error, AbortFailed):
            notes.append(_left(error))
            raise await _reason(client, key) from error
        if refusal is not None:
            raise StoreUnavailable(
                f"{key} may be there or not, as the answer was lost ({error}) and it may not be read: {refusal}. "
                "Write it again"
            ) from error
        if isinstance(error, Transient):
            raise
        raise StoreError(f"the store no longer knows the parts that were sent ({error}): write it again") from error


async def _reason(client: ObjectStore, key: str) -> Exception:
    """Find out why an upload failed whose parts could not be thrown away either: its client tells of that alone.

    A part of another upload is refused as those of the first were, if that is what it was.
    """
    trial = objects.open_upload(client, key, TRIAL_BYTES, 1)
    try:
        async with asyncio.timeout(TRIAL_S):
            for _ in range(2):
                # What became of a part is told when the client is given the next.
                await objects.add(trial, bytes(TRIAL_BYTES + 1))
    except (StoreError, Transient) as error:
        return error
    except TimeoutError:
        return StoreUnavailable("the store takes no parts any more: try again later")
    finally:
        with suppress(StoreError, Transient):
            await objects.abandon(trial)
    return StoreUnavailable(
        "it failed, and its client does not say why, as throwing it away failed too: write it again"
    )


async def _facts(client: ObjectStore, key: str) -> tuple[Any, ...] | StoreError | None:
    """Give what identifies an object; None if there is none, or why that can't be said."""
    try:
        return objects.described(await objects.describe(client, key))
    except ObjectMissing:
        return None
    except (StoreError, Transient) as error:
        return StoreUnavailable(str(error))


class _Parts(io.RawIOBase):
    """The bytes of an upload, one after the other; once it has ended, they go nowhere."""

    def __init__(self, writer: AsyncWritableFile, step: Step, part_bytes: int) -> None:
        super().__init__()
        self._writer, self._step = writer, step
        self.part_bytes = part_bytes
        self.ended = False
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        given = bytes(data)
        if not self.ended:
            self._step(partial(self._send, given))
            self.num_bytes += len(given)
        return len(given)

    async def _send(self, given: bytes) -> None:
        most = min(MOST_PARTS * self.part_bytes, MOST_BYTES)
        if self.num_bytes + len(given) > most:
            raise StoreError(
                f"it grows beyond {most:,} bytes, in parts of {self.part_bytes >> 20} MiB: say beforehand how large it "
                "may become, upload(path, num_bytes=…), at most 5 TiB"
            )
        await objects.add(self._writer, given)
