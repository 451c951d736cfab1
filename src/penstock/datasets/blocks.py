"""BlockManager: a dataset of any size, a few thousand samples at a time.

    dataset ──▶ blocks (100,000 samples, a disk or a store) ──get_chunk──▶ chunks (4,000, memory) ──▶ batches

Law: a chunk is rows [chunk · size, (chunk + 1) · size) of its block, whoever asks and whatever is filtered.
Reading one reads its bytes and no others, so it costs the same in a block of any length.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from penstock.datasets.block_dataset import is_ascii
from penstock.datasets.block_source import BlockSource, open_block_source
from penstock.errors import ConfigError, LoaderClosed
from penstock.store.urls import lasting
from penstock.types import check_choice, check_int, check_number

KEPT_CHUNKS = 10
CLOSE_WITHIN_S = 0.8
IDLE_S = 5.0

Chunk = list[dict[str, Any]]
Key = tuple[int, int, int]
"""Block, chunk, samples per chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataBlock:
    """What is known of a block without reading it."""

    block_id: int
    total_samples: int
    is_last_block: bool

    def chunk_count(self, size: int) -> int:
        """Count its chunks of `size` samples; the last one may be shorter.

        >>> DataBlock(block_id=0, total_samples=250, is_last_block=True).chunk_count(100)
        3
        """
        return -(-self.total_samples // check_int("size", size, minimum=1))


class BlockManager:
    """Reads a dataset in blocks, chunk by chunk, and keeps no more than the last few chunks in memory.

    Args:
        dataset_path: a folder of blocks; the URL of one that has a manifest, which is read by ranges; or `hf://`, or
            another URL or file of raw data, which is downloaded and cut into blocks on demand, block by block, in
            the background, into a folder that all processes of this machine share.
        samples_per_block: samples of the blocks that are made of raw data. Where there is a manifest, its
            `block_size` counts.
        dataset_chunk_size: samples of a chunk.
        ascii_only: leave out samples whose text is not ASCII. Those with an empty text are always left out. The
            others keep their places: a chunk then holds fewer samples, never others.
        enable_prefetch: read the next chunk in the background while this one is worked on.
        text_column: field that holds the text. None: the one the manifest names.
        cache_dir: where blocks of raw data are kept. None: `penstock/blocks` in the user's cache folder.
        timeout: seconds to wait for the next sign of life of a download or another reader.
        storage_options: for the store of a remote folder, see `penstock.open_store`.

    Raises:
        ConfigError: an argument cannot work, or there are no blocks.
        ObjectMissing: there is no such folder.
        BadManifest, BadBlock: what is there contradicts itself.

    Methods may be called by several threads at the same time.
    """

    def __init__(
        self,
        dataset_path: str | os.PathLike[str],
        samples_per_block: int = 100_000,
        dataset_chunk_size: int = 4_000,
        ascii_only: bool = False,
        enable_prefetch: bool = True,
        *,
        text_column: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout: float = 600.0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(dataset_path, str | os.PathLike):
            raise ConfigError(f"dataset_path must be a folder of blocks or a URL, got {dataset_path!r}")
        self.dataset_path = lasting(dataset_path)
        self.dataset_chunk_size = check_int("dataset_chunk_size", dataset_chunk_size, minimum=1)
        check_choice("ascii_only", ascii_only, (True, False))
        check_choice("enable_prefetch", enable_prefetch, (True, False))
        self.ascii_only = ascii_only
        self._timeout = check_number("timeout", timeout, above=0, unit="seconds")
        self._text_column = text_column
        self._source: BlockSource = open_block_source(
            self.dataset_path,
            samples_per_block=check_int("samples_per_block", samples_per_block, minimum=1),
            cache_dir=cache_dir,
            timeout=self._timeout,
            storage_options=storage_options,
        )
        self.samples_per_block = self._source.block_size
        """Samples of every block but the last."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Chunk] = OrderedDict()
        self._coming: dict[Key, Future[Chunk | None]] = {}
        self._prefetcher = _Prefetcher(self._ahead) if enable_prefetch else None
        self._closed = False

    def __enter__(self) -> BlockManager:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BlockManager({self.dataset_path!r}, dataset_chunk_size={self.dataset_chunk_size})"

    @property
    def text_column(self) -> str | None:
        """The field that holds the text."""
        if self._text_column is None:
            self._text_column = self._source.text_column()
        return self._text_column

    def get_block(self, block_id: int) -> DataBlock | None:
        """Describe a block, without reading it; None past the last one.

        Raw data is downloaded up to this block, and until it is known whether another follows.

        Raises:
            StoreError: the download made no progress for `timeout` seconds, or failed.
        """
        count = self._source.sample_count(check_int("block_id", block_id, minimum=0))
        if count is None:
            return None
        return DataBlock(block_id=block_id, total_samples=count, is_last_block=self.is_last_block(block_id))

    def get_chunk(self, block_id: int, chunk_id: int, chunk_size: int | None = None) -> Chunk | None:
        """Read a chunk; None past the last one of its block, or past the last block.

        Args:
            block_id: number of the block, from 0.
            chunk_id: number of the chunk in it, from 0.
            chunk_size: samples per chunk. None: `dataset_chunk_size`.

        Returns:
            The samples that are not filtered, in order; empty if all are.

        Raises:
            BadBlock: the block is missing, damaged, or not what the manifest says.
            BadRecord: a line of the chunk can't be used.
            StoreError: a remote block can't be reached, or a download fails.
        """
        size = self.dataset_chunk_size if chunk_size is None else check_int("chunk_size", chunk_size, minimum=1)
        key = (check_int("block_id", block_id, minimum=0), check_int("chunk_id", chunk_id, minimum=0), size)
        chunk = self._chunk(key)
        if chunk is None:
            return None
        self._prefetch_after(key)
        # A list and dicts of its own: what the caller takes out of them or puts in is not so in memory.
        return list(map(dict, chunk))

    def get_total_blocks(self) -> int | None:
        """Count the blocks; None for raw data that has not been downloaded to its end yet."""
        return self._source.total_blocks()

    def is_last_block(self, block_id: int) -> bool:
        """Whether no block follows; False for one that does not exist either."""
        return self._source.is_last(check_int("block_id", block_id, minimum=0))

    def text_of(self, sample: Mapping[str, Any]) -> str:
        """Give a sample's text; empty if it has none.

        Raises:
            ConfigError: what the sample has there is no text.
        """
        text = sample.get(self.text_column) if self.text_column is not None else None
        if text is not None and not isinstance(text, str):
            raise ConfigError(
                f"field {self.text_column!r} of the sample is a {type(text).__name__}, no text: name the one that is "
                f"with text_column=, one of {sorted(sample)}"
            )
        return text or ""

    def free_block(self, block_id: int) -> None:
        """Forget a block's chunks and close its file; nothing on a disk is removed."""
        check_int("block_id", block_id, minimum=0)
        with self._lock:
            for key in [key for key in self._kept if key[0] == block_id]:
                del self._kept[key]
        self._source.release(block_id)

    def start_predownload(self, num_blocks: int) -> None:
        """Begin to download up to block `num_blocks` of raw data in the background.

        Blocks that exist already are where they are: local ones need nothing, remote ones are read by range.
        """
        self._source.request(check_int("num_blocks", num_blocks, minimum=1))

    def reset(self) -> None:
        """Forget all chunks in memory and what was about to be read, as at the start of an epoch."""
        if self._prefetcher is not None:
            self._prefetcher.forget()
        with self._lock:
            self._kept.clear()

    def close(self) -> None:
        """End the background threads, within a second, and let go of files; complete blocks of a download stay."""
        self._closed = True
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._source.close()
        with self._lock:
            self._kept.clear()

    def _chunk(self, key: Key) -> Chunk | None:
        """Give a chunk: one that is kept, or on its way, or is read now."""
        with self._lock:
            if self._closed:
                raise LoaderClosed("this BlockManager was closed: open another")
            if (chunk := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return chunk
            future = self._coming.get(key)
            others = future is not None
            if future is None:
                future = self._coming[key] = Future()
        if not others:
            self._fulfil(key, future)
        return future.result(2 * self._timeout)

    def _ahead(self, key: Key) -> None:
        """Read a chunk that nobody has asked for yet."""
        with self._lock:
            if self._closed or key in self._kept or key in self._coming:
                return
            future = self._coming[key] = Future()
        self._fulfil(key, future)

    def _fulfil(self, key: Key, future: Future[Chunk | None]) -> None:
        """Read a chunk, for this thread and for those that wait for the future; an error is theirs."""
        chunk: Chunk | None = None
        failure: BaseException | None = None
        try:
            chunk = self._read(key)
        except BaseException as error:  # noqa: BLE001 - it is raised where the chunk is asked for
            failure = error
        with self._lock:
            del self._coming[key]
            if chunk is not None and not self._closed:
                self._kept[key] = chunk
                while len(self._kept) > KEPT_CHUNKS:
                    self._kept.popitem(last=False)
        if failure is None:
            future.set_result(chunk)
        else:
            future.set_exception(failure)

    def _read(self, key: Key) -> Chunk | None:
        block, chunk, size = key
        rows = self._source.read(block, chunk * size, (chunk + 1) * size)
        return None if rows is None else [row for row in rows if self._keeps(row)]

    def _keeps(self, sample: Mapping[str, Any]) -> bool:
        if self.text_column is None:
            return True
        text = sample.get(self.text_column)
        if text is None or (isinstance(text, str) and not text.strip()):
            return False
        return not self.ascii_only or is_ascii(text)

    def _prefetch_after(self, key: Key) -> None:
        """Begin to read the chunk that follows."""
        if self._prefetcher is None:
            return
        block, chunk, size = key
        if (chunk + 1) * size < (self._source.known_count(block) or 0):
            self._prefetcher.ask((block, chunk + 1, size))
        elif self._source.known_count(block + 1) is not None:
            self._prefetcher.ask((block + 1, 0, size))
        else:
            # Raw data that is not here yet: asked for, and not waited for.
            self._source.request(block + 2)


class _Prefetcher:
    """One thread that reads the chunk it was asked for last; it ends when nobody asks for a while.

    Args:
        read: reads a chunk, and keeps it and its errors to itself.
    """

    def __init__(self, read: Callable[[Key], None]) -> None:
        self._read = read
        self._wake = threading.Condition()
        self._key: Key | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, key: Key) -> None:
        """Read a chunk soon, in place of one that was asked for before and not begun."""
        with self._wake:
            self._key = key
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="penstock-chunks", daemon=True)
                self._thread.start()
            self._wake.notify()

    def forget(self) -> None:
        """Give up what was asked for and not begun."""
        with self._wake:
            self._key = None

    def close(self) -> None:
        """End the thread, unless it is stuck."""
        with self._wake:
            thread, self._key, self._closed = self._thread, None, True
            self._wake.notify()
        if thread is not None:
            thread.join(CLOSE_WITHIN_S)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._key is not None, IDLE_S)
                key, self._key = self._key, None
                if key is None or self._closed:
                    self._thread = None
                    return
            self._read(key)
