"""Samples from anywhere: an index says what they are, their files are fetched when they are asked for.

    ids ──▶ rows of the index ──predownload transforms──▶ locations ──cache──▶ samples with local paths
                                                             │
                                     downloaded, hundreds at once, or there already

Law: what a sample is depends on the index, the id and, where transforms draw numbers, the epoch; never on
what is cached, what failed before, or who else reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Literal

import numpy as np

from penstock.datasets.ids import check_id
from penstock.datasets.leased import keep_with, lease_of
from penstock.datasets.locations import read_downloads
from penstock.datasets.quarantine import QuarantineLog
from penstock.datasets.streaming_fetch import CacheSettings, Recital, SampleFetcher
from penstock.datasets.streaming_index import index_of, is_of_this_machine
from penstock.datasets.streaming_options import (
    Policy,
    cache_folder,
    check_apart,
    check_callables,
    check_data_type,
    check_flag,
    check_own_fields,
    check_seed,
    check_source,
    check_storage_options,
    hidden_columns,
)
from penstock.datasets.streaming_views import Views
from penstock.errors import SampleError, reason_of
from penstock.formats.files import digest
from penstock.index.choice import Choice, names_of
from penstock.index.lazy import parts_of
from penstock.index.table import Index
from penstock.store.cache import Cache
from penstock.store.sizes import parse_size
from penstock.store.urls import redact
from penstock.transforms.chain import Chain
from penstock.transforms.collate import stack_present
from penstock.transforms.reused_buffers import NamedBuffers
from penstock.types import check_choice, check_int


class StreamingDataset:
    """Samples described by an index, one row each, whose files are fetched on demand, cached and evicted.

    A sample is a dict: the columns of its row, local paths in the place of the locations that
    `columns_to_download` names, `__sample_key__` and `__data_type__`. What a row lacks is None. A path stays valid
    for as long as somebody holds it.

    Args:
        src: what describes the samples, local or at a URL: an index (.csv, .tsv, .json, .jsonl, .parquet, .arrow, a
            table of an SQLite or DuckDB file as FILE#TABLE), a glob of them, a list of them (`split_file_paths.txt`),
            a folder, whose files are grouped by name, a tar archive or a glob of them, a data provider, or an `Index`.
        dst: folder on this machine for the index, the cache and the list of failed samples; datasets and jobs may
            share one. None: `penstock/streaming` in the user's cache folder.
        data_type: "image", "video", "audio", "text", or any name that ends in "_latent": goes into each sample.
        columns_to_download: columns whose values are locations of objects to fetch. An entry is a name, or a mapping
            {"column", "offset", "length", "name"} of names: a part of an object, which starts at the byte and has the
            bytes that two other columns say, put into the sample under `name`. None or []: metadata only.
        index_col_name: the column of keys, which must differ from row to row; an `Index` knows its own.
        shuffle_seed: key of the order, and of the randomness of transforms. None: in the order of the index.
        transforms: sample → sample, or several. One with a parameter `rng` gets a generator keyed to the sample and
            epoch. A list or generator adds several samples, None leaves the sample out.
        predownload_transforms: row → row, before anything is fetched: pick a caption, choose a URL. None leaves the
            sample out. `rng` as above.
        num_downloading_workers: batches worked on at once, in a process.
        prefetch: batches prepared ahead.
        num_downloading_retries: attempts after a first that failed in a way that may pass.
        cache_limit: bytes kept on this machine in `dst`, by all that use it: a number, a text like "2gb", None for
            no limit, 0 to keep nothing that nobody holds.
        max_size: use this many samples at most, the first ones.
        allow_missing_columns: columns that are named here and are not there are None instead of an error.
        sql_query: SQL (of DuckDB) that selects rows and columns of the table `dataframe`.
        lazy_index_chunk_size: of Parquet, read only how many rows there are at the start, and parts of at least so many
            rows as they are needed; keys are not checked then, and there is no `sql_query`. None: the whole index at
            the start.
        lazy_index_num_threads: threads that read such parts.
        lazy_index_prefetch_factor: parts that each of them reads ahead.
        index_cols_to_keep: columns of the index in each sample. None: all.
        infinite_iteration: `iter` and `iter_batches` go on with the next epoch, without end.
        on_error: a sample that fails "raise"s a SampleError, is "skip"ped, or "substitute"d by another. None: "raise",
            unless the loader says otherwise.
        storage_options: for the stores, see `penstock.open_store`.
        allow_local_paths: rows of an index at a URL may name files of this machine; those of a local one always may.

    Raises:
        ConfigError: an argument cannot work, or the index lacks a column, has one of the two names, or selects nothing.
        FormatError: the index cannot be read, lacks the column of keys, or has a key twice.
        ObjectMissing, AccessDenied, StoreUnavailable: the source cannot be had.

    `ds[i]` waits for one sample and gives it, transformed. A loader is given the whole:
    `StreamingDataLoader(ds, batch_size=…)` takes `shuffle_seed`, `on_error`, `num_downloading_workers` and
    `prefetch` for its own defaults.
    """

    def __init__(
        self,
        src: Any,
        dst: str | os.PathLike[str] | None = None,
        *,
        data_type: str | None = None,
        columns_to_download: Sequence[str | Mapping[str, str]] | None = None,
        index_col_name: str = "index",
        shuffle_seed: int | None = None,
        transforms: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        predownload_transforms: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        num_downloading_workers: int = 4,
        prefetch: int = 10,
        num_downloading_retries: int = 3,
        cache_limit: str | int | None = "100mb",
        max_size: int | None = None,
        allow_missing_columns: bool = False,
        sql_query: str | None = None,
        lazy_index_chunk_size: int | None = None,
        lazy_index_num_threads: int = 3,
        lazy_index_prefetch_factor: int = 3,
        index_cols_to_keep: Sequence[str] | None = None,
        infinite_iteration: bool = False,
        on_error: Policy | None = None,
        storage_options: Mapping[str, Any] | None = None,
        allow_local_paths: bool = False,
    ) -> None:
        check_source(src)
        check_data_type(data_type)
        self.data_type = data_type
        check_choice("on_error", on_error, (None, "raise", "skip", "substitute"))
        self.on_error = on_error
        self.shuffle_seed = check_seed(shuffle_seed)
        self.transforms = check_callables("transforms", transforms)
        self.num_downloading_workers = check_int("num_downloading_workers", num_downloading_workers, minimum=1)
        self.prefetch_tickets = check_int("prefetch", prefetch, minimum=1)
        self.infinite_iteration = check_flag("infinite_iteration", infinite_iteration)
        retries = check_int("num_downloading_retries", num_downloading_retries, minimum=0)
        options = check_storage_options(storage_options, retries)
        before = check_callables("predownload_transforms", predownload_transforms)
        downloads = read_downloads(columns_to_download)
        self.dst = cache_folder(dst)
        check_apart(src, self.dst)
        kept = None if index_cols_to_keep is None else names_of("index_cols_to_keep", index_cols_to_keep)
        limit = None if cache_limit is None else parse_size(cache_limit)
        self._source = redact(os.fspath(src)) if isinstance(src, str | os.PathLike) else type(src).__name__
        self._index = index_of(
            src,
            Choice(
                key=index_col_name,
                columns=tuple(name for download in downloads for name in download.columns),
                keep=kept,
                sql_query=sql_query,
                max_size=max_size,
                allow_missing_columns=allow_missing_columns,
                parts=parts_of(lazy_index_chunk_size, lazy_index_num_threads, lazy_index_prefetch_factor),
            ),
            self.dst / "index",
            options,
        )
        downloads = tuple(download.beside(self._index.columns) for download in downloads)
        hidden = hidden_columns(self._index.columns, downloads, self._index.key, kept)
        check_own_fields(self._index.columns, hidden, self._index.key, downloads)
        seed = self.shuffle_seed or 0
        self._recital = Recital(
            key_column=self._index.key,
            data_type=data_type,
            downloads=downloads,
            hidden=hidden,
            predownload=Chain(before, seed=seed, stream="predownload"),
            local=check_flag("allow_local_paths", allow_local_paths) or is_of_this_machine(src, self._index),
        )
        self._chain = Chain(self.transforms, seed=seed)
        self._cache_settings = CacheSettings(folder=self.dst / "cache", limit=limit, options=options)
        self._start()

    def _start(self) -> None:
        """Make what each process has for itself."""
        self._fetcher = SampleFetcher(self._index, self._recital, self._cache_settings)
        # Threads that work ahead know a twin, so that they keep no dataset from being collected.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        self._views = Views(twin)

    def __len__(self) -> int:
        """Count the samples: exact."""
        return len(self._index)

    def __repr__(self) -> str:
        return f"StreamingDataset({self._source!r}: {len(self):,} samples)"

    def __getitem__(self, index: int) -> Any:
        """Give one sample, transformed; a list where a transform makes several, None where one leaves it out.

        Waits for the download. Transforms draw the numbers of epoch 0.

        Raises:
            IndexError: there is no such sample.
            SampleError: it can't be had, or a transform failed; names its key and what is wrong.
        """
        return self._finished(check_id(index, len(self), self))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Give several samples, as torch's DataLoader asks for them: what several become is joined into one list."""
        ids = np.asarray(indices, np.int64)
        self.prefetch(ids)
        outputs = [self[id_] for id_ in ids.tolist()]
        return [one for output in outputs for one in (output if isinstance(output, list) else [output])]

    @cached_property
    def fingerprint(self) -> str:
        """What the samples are: the index, and what is made of its rows."""
        recital = self._recital
        return digest(repr([self._index.fingerprint, recital.data_type, recital.downloads, recital.hidden]).encode())

    @property
    def index(self) -> Index:
        """The rows that describe the samples."""
        return self._index

    @property
    def cache(self) -> Cache:
        """What is kept of the downloads: counts, checks, emptying."""
        return self._fetcher.cache

    @property
    def block_ends(self) -> np.ndarray | None:
        """Where each part of a lazy index ends, int64 [parts], for `shuffle="window"`; None: there are no parts."""
        return self._index.block_ends

    @property
    def default_shuffle(self) -> Literal["global", "window", False]:
        """How a loader shuffles that is not told how: in the parts of a lazy index, so that each is read once."""
        if self.shuffle_seed is None:
            return False
        return "global" if self.block_ends is None else "window"

    @property
    def inline(self) -> bool:
        """Whether samples are metadata only, so that working ahead would not pay."""
        return not (self._recital.downloads or self._recital.predownload or self.transforms)

    @property
    def filters(self) -> bool:
        """Whether `fetch` may leave samples out."""
        return bool(self._recital.predownload)

    @property
    def stats(self) -> Any:
        """Counts of `iter` and `iter_batches`: samples, seconds, failures by reason."""
        return self._views.loader.stats

    def fetch(self, ids: np.ndarray, epochs: np.ndarray | None = None) -> list[Any]:
        """Give the samples of ids, int64 [n], before `transforms`: downloaded all at once, waiting for the last.

        Args:
            ids: int64 [n], each in [0, len(self)).
            epochs: int64 [n], for `predownload_transforms` that draw numbers. None: 0.

        Returns:
            For each id its sample, None if a predownload transform left it out, or the error if it can't be had.
        """
        return self._fetcher.fetch(ids, epochs)

    def prefetch(self, ids: np.ndarray, epochs: np.ndarray | None = None) -> None:
        """Begin to download what ids will need; returns at once."""
        self._fetcher.prefetch(ids, epochs)

    def discard(self, id_: int) -> bool:
        """Throw away what is cached of a sample that failed; tell whether fetching it again makes sense."""
        return self._fetcher.discard(id_)

    def describe(self, id_: int, error: Exception) -> tuple[str, str]:
        """Say which sample an id is, by key and locations, and what may help against an error; "" where nothing."""
        row = self._index.rows(np.array([id_]))[0]
        where = self._fetcher.locations_of(id_)
        shown = f"({row[self._recital.key_column]!r}{''.join(f', {one}' for one in where)})"
        missing = getattr(error, "filename", None) if isinstance(error, FileNotFoundError) else None
        named = [name for name, value in row.items() if isinstance(value, str) and value == str(missing)]
        return shown, f"; did you forget columns_to_download={named!r}?" if named else ""

    def collate(self, samples: list[Any], buffers: NamedBuffers | None = None) -> Any:
        """Stack samples, in memory of `buffers`; a column in which values are missing stays a list."""
        return stack_present(samples, buffers)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rest of the epoch, sample by sample, transformed; nothing happens before the first `next`.

        What fails under "skip" is left out, and no sample is repeated to keep ranks in step: ranks may differ by one
        sample and by what they skipped. `iter_batches` and a loader keep them in step.
        """
        return self._views.samples()

    def iter_batches(
        self, batch_size: int, *, drop_last: bool = False, collate_fn: Callable[[list[Any]], Any] | None = None
    ) -> Iterator[Any]:
        """Iterate over the rest of the epoch in batches of this rank, as a StreamingDataLoader makes them."""
        return self._views.batches(batch_size, drop_last, collate_fn)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; does nothing if the cursor is in that epoch already."""
        self._views.set_epoch(check_int("epoch", epoch, minimum=0))

    def state_dict(self) -> dict[str, Any]:
        """Say where `iter` and `iter_batches` stand: `epoch`, `sample_in_epoch` of all ranks, and of which stream."""
        return self._views.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where a state was saved, on whatever number of ranks and workers.

        Raises:
            StateMismatch: it belongs to other data, or another order; says what differs.
        """
        self._views.load_state_dict(state)

    def list_failures(self, failures: Sequence[Any], substitutes: Mapping[int, int]) -> None:
        """Note samples that a loader left out or replaced in `quarantine`; a loader calls it."""
        keys = self._index.rows(np.array([failure.id for failure in failures], np.int64))
        self.quarantine.add(
            [
                {
                    "epoch": failure.epoch,
                    "id": failure.id,
                    "key": row[self._recital.key_column],
                    "locations": self._fetcher.locations_of(failure.id),
                    "stage": failure.stage,
                    "reason": failure.reason,
                    "message": failure.message,
                    "substitute": substitutes.get(failure.id),
                }
                for failure, row in zip(failures, keys, strict=True)
            ]
        )

    @cached_property
    def quarantine(self) -> QuarantineLog:
        """The list of samples that could not be used, a file in `dst` that all who read these samples append to."""
        return QuarantineLog(self.dst / "quarantine" / f"{self.fingerprint}.jsonl")

    def close(self) -> None:
        """End downloads and threads, within a second; the dataset can be used again."""
        self._views.close()
        self._fetcher.close()

    def __enter__(self) -> StreamingDataset:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Downloads, threads and the cursor stay where they are.
        return {name: value for name, value in self.__dict__.items() if name not in ("_fetcher", "_views")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _finished(self, id_: int) -> Any:
        """Fetch and transform one sample; what is cached of one that fails is fetched anew, once."""
        try:
            return self._tried(id_)
        except SampleError:
            if not self.discard(id_):
                raise
        return self._tried(id_)

    def _tried(self, id_: int) -> Any:
        rows = self.fetch(np.array([id_]))
        sample, lease = self._transformed(id_, rows[0]), lease_of(rows)
        return keep_with(sample, lease) if lease and self.transforms else sample

    def _transformed(self, id_: int, row: Any) -> Any:
        """Run the transforms on what `fetch` gave of a sample."""
        stage = "fetch"
        try:
            if isinstance(row, Exception):
                raise row
            stage = "transform"
            return None if row is None else self._chain.one(row, 0, id_)
        except Exception as error:
            kind, (which, advice) = type(error).__name__, self.describe(id_, error)
            raise SampleError(
                f"sample {id_} {which} of {self!r} failed in {stage}: {kind}: {error}{advice}",
                dataset=type(self).__name__,
                key=id_,
                stage=stage,
                reason=reason_of(error),
            ) from error
