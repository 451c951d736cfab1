"""Objects of any size written to a store: sent in parts while the next is made, there whole or not at all.

    block: write · write · write ──parts──▶ store, under no name ──end of the block──▶ the object

A process holds at most PARTS + 1 parts of each. One that is killed leaves parts that no reader sees; clouds
throw them away by a rule for incomplete uploads.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from penstock.errors import ObjectMissing, StoreError, StoreUnavailable
from penstock.store import objects
from penstock.store.failures import BucketMissing
from penstock.store.requests import Transient

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import ObjectStore

PART_BYTES = 16 << 20
"""Of which clouds take at most 10,000: an object of 160 GiB."""
PARTS = 4
STEP_BYTES = 1 << 20

Step = Callable[[Callable[[], Awaitable[None]]], None]
"""Carries out a piece of work on the background thread and waits for it; raises in terms of the object."""


@contextmanager
def uploading(client: ObjectStore, key: str, step: Step) -> Iterator[BinaryIO]:
    """Send an object in parts; see `Store.upload`.

    Args:
        client: sends the parts, each again by itself if that can help.
        key: of the object.
        step: carries out what is asked of the client.
    """
    writer = objects.open_upload(client, key, PART_BYTES, PARTS)
    parts = _Parts(writer, step)
    file = io.BufferedWriter(parts, STEP_BYTES)
    try:
        yield cast(BinaryIO, file)
        if not file.closed:
            file.flush()
        step(partial(_complete, client, key, writer, parts.num_bytes))
    except BaseException:
        # The error that ended the block is the one to tell; what this leaves, no reader sees.
        with suppress(StoreError):
            step(partial(objects.abandon, writer))
        raise
    finally:
        parts.ended = True
        file.close()


async def _complete(client: ObjectStore, key: str, writer: AsyncWritableFile, num_bytes: int) -> None:
    """Give an upload its name, and find out whether it has it where the answer was lost on its way."""
    if num_bytes < PART_BYTES:
        # It goes in one request, which may be made again.
        return await objects.complete(writer)
    before = await _facts(client, key)
    try:
        return await objects.complete(writer)
    except BucketMissing:
        raise
    except (ObjectMissing, Transient) as error:
        now = await _facts(client, key)
        if isinstance(before, StoreError) or isinstance(now, StoreError):
            refusal = before if isinstance(before, StoreError) else now
            raise StoreUnavailable(
                f"{key} may be there or not, as the answer was lost ({error}) and it may not be read: {refusal}. "
                "Write it again"
            ) from error
        if now is not None and now != before and now[0] == num_bytes:
            return None
        if isinstance(error, Transient):
            raise
        raise StoreError(f"the store no longer knows the parts that were sent ({error}): write it again") from error


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

    def __init__(self, writer: AsyncWritableFile, step: Step) -> None:
        super().__init__()
        self._writer, self._step = writer, step
        self.ended = False
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        given = bytes(data)
        if not self.ended:
            self._step(partial(objects.add, self._writer, given))
            self.num_bytes += len(given)
        return len(given)
