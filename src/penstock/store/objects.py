"""Objects over the network and in memory, through obstore: S3, Google Cloud, Azure, HTTP.

The one file that knows obstore: its clients, and what its errors mean. Its own retries are off, since
they neither wait as long as a server asks to nor say how often they tried (`requests.persist` does). Only
the parts of an upload, which it alone knows, it sends again by itself.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from penstock.errors import AccessDenied, ConfigError, ObjectChanged, ObjectMissing, StoreError
from penstock.node.disk import store_errors
from penstock.store.failures import (
    AbortFailed,
    BucketMissing,
    OutsideObject,
    RangesIgnored,
    WrongRegion,
    first_line,
    is_of_abort,
    of_status,
    reason_of,
)
from penstock.store.options import advice, check_addresses, variables
from penstock.store.probe import probe
from penstock.store.requests import Patience, Transient, held
from penstock.store.urls import HTTP, Place, redact

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import ObjectStore, RetryConfig

REQUEST_S = timedelta(minutes=15)
CONNECT_S = timedelta(seconds=10)
IDLE_S = timedelta(seconds=20)
"""After so long a connection that nobody uses is closed; a client would keep hundreds for minutes."""
PIECE = 1 << 20
"""Bytes of an object that are written at a time."""
PAGE = 1000
"""Objects of one page of a listing."""
_MISSING_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_WRONG_REGION = re.compile(r"without LOCATION|AuthorizationHeaderMalformed.*region|<Code>PermanentRedirect", re.DOTALL)
_REGION = re.compile(r"expecting '([a-z0-9-]+)'|<Region>([a-z0-9-]+)</Region>")
_EXPIRED = re.compile(r"<Code>(?:ExpiredToken|TokenRefreshRequired|RequestExpired)</Code>")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_PANICS = ("pyo3_runtime", "pyo3_async_runtimes")
_memory: dict[str, Any] = {}
_memory_lock = threading.Lock()


def connect(
    place: Place,
    headers: Mapping[str, str],
    timeout_s: float,
    options: Mapping[str, Any],
    *,
    fresh: bool = False,
    patience: Patience | None = None,
) -> ObjectStore:
    """Give a client for a place's root; places of one root and the same options share its connections.

    Args:
        place: where to.
        headers: sent with each request.
        timeout_s: longest silence of a server.
        options: what obstore's constructor of that store takes, such as region, endpoint, access_key_id.
        fresh: make a client that shares nothing, and so asks for its credentials anew.
        patience: let the client try again by itself, and so share nothing; None: it does not.

    Raises:
        ConfigError: an option that this store does not have.
    """
    if place.scheme == "memory":
        from obstore.store import MemoryStore

        with _memory_lock:
            return _memory.setdefault(place.root, MemoryStore())
    if fresh or patience is not None:
        return _build(place.scheme, place.root, dict(headers), timeout_s, dict(options), patience)
    try:
        given = tuple(headers.items()), timeout_s, tuple(sorted(options.items()))
        # A client keeps what the variables said when it was made: who changes them gets another.
        return _client(place.scheme, place.root, *given, variables(place.scheme))
    except TypeError:
        # An option that can't be hashed, such as a function that renews credentials: a client of its own.
        return _build(place.scheme, place.root, dict(headers), timeout_s, dict(options))


@lru_cache(maxsize=64)
def _client(scheme: str, root: str, headers: tuple, timeout_s: float, options: tuple, variables: tuple) -> ObjectStore:
    del variables
    return _build(scheme, root, dict(headers), timeout_s, dict(options))


def _build(
    scheme: str,
    root: str,
    headers: dict[str, str],
    timeout_s: float,
    options: dict[str, Any],
    patience: Patience | None = None,
) -> ObjectStore:
    from obstore.store import HTTPStore, from_url

    check_addresses(scheme, options)
    if scheme in HTTP:
        # What is compressed on its way has neither a length nor ranges that mean anything here.
        headers = {"Accept-Encoding": "identity", **headers}
    client = {
        "timeout": REQUEST_S,
        "connect_timeout": min(CONNECT_S, timedelta(seconds=timeout_s)),
        "read_timeout": timedelta(seconds=timeout_s),
        "pool_idle_timeout": IDLE_S,
        "allow_http": True,
        **({"default_headers": headers} if headers else {}),
        **options.pop("client_options", {}),
    }
    retries = {"max_retries": 0} if patience is None else _retries(patience)
    try:
        # from_url would take some https hosts for clouds.
        if scheme in HTTP:
            return HTTPStore(root, client_options=client, retry_config=retries, **options)
        return from_url(root, client_options=client, retry_config=retries, **options)
    except BaseException as error:
        if not _is_of_obstore(error, TypeError, ValueError):
            raise
        said = advice(scheme, options, str(error)) or first_line(error)
        raise ConfigError(f"cannot open {redact(root)}: {said}") from None


def _retries(patience: Patience) -> RetryConfig:
    return {
        "max_retries": patience.retries,
        "retry_timeout": timedelta(seconds=patience.deadline_s),
        "backoff": {
            "init_backoff": timedelta(seconds=patience.first_wait_s),
            "max_backoff": timedelta(seconds=patience.longest_wait_s),
            "base": 2,
        },
    }


def begin_range(store: ObjectStore, key: str, start: int, stop: int) -> asyncio.Future[Any]:
    """Begin to read bytes [start, stop) of an object, fewer if it ends before; on an event loop.

    Half the work of `fetch`, since nothing comes back but the bytes (`to_bytes()` of the result). It fails
    as obstore does: see `meaning`. Cancelling it ends the request.
    """
    import obstore

    return held(cast("asyncio.Future[Any]", obstore.get_range_async(store, key, start=start, end=stop)))


async def fetch(
    store: ObjectStore, key: str, start: int | None, stop: int | None, *, described: bool
) -> tuple[bytes, Mapping[str, Any] | None]:
    """Read an object, or bytes [start, stop) of it; with a `start` below 0 so many bytes at its end.

    Returns:
        The bytes, and the object's description (path, size, e_tag) where it was sent with them: always
        if `described` is asked for or the whole object is read.

    Raises:
        Transient: a failure that may pass.
        ObjectMissing, AccessDenied, ObjectChanged, StoreError: one that will not; without the URL.
    """
    import obstore

    with _in_our_terms():
        if start is not None and stop is not None and not described:
            data = await held(obstore.get_range_async(store, key, start=start, end=stop))
            return data.to_bytes(), None
        ranged: Any = None
        if start is not None:
            ranged = {"range": {"suffix": -start} if start < 0 else (start, stop)}
        result = await held(obstore.get_async(store, key, options=ranged))
        _refuse_encoded(store, result)
        return (await held(result.bytes_async())).to_bytes(), result.meta


async def copy(store: ObjectStore, key: str, file: BinaryIO) -> Mapping[str, Any]:
    """Write an object whole into a file, from the file's beginning, a piece at a time; gives its description.

    Raises:
        As `fetch`; StoreError too if the file can't be written.
    """
    import obstore

    file.seek(0)
    file.truncate()
    with _in_our_terms():
        result = await held(obstore.get_async(store, key))
        _refuse_encoded(store, result)
        pieces = aiter(result.stream(min_chunk_size=PIECE))
    while (piece := await _next_piece(pieces)) is not None:
        with store_errors(gettempdir()):
            file.write(piece)
    return result.meta


async def _next_piece(pieces: Any) -> Any:
    """Read the next bytes of an object; None after the last. Raises as `fetch` does."""
    with _in_our_terms():
        try:
            return await held(anext(pieces))
        except StopAsyncIteration:
            return None


def _refuse_encoded(store: ObjectStore, result: Any) -> None:
    """Refuse what a web server compresses although it was asked not to. In a bucket that is how it is stored."""
    from obstore.store import HTTPStore

    encoding = result.attributes.get("Content-Encoding", "identity")
    if isinstance(store, HTTPStore) and encoding.lower() not in ("", "identity"):
        raise StoreError(
            f"the server sends it compressed ({encoding}) though it was asked not to: have it send files as they are"
        )


async def describe(store: ObjectStore, key: str) -> Mapping[str, Any]:
    """Read an object's description: path, size, e_tag, last_modified. Raises as `fetch` does."""
    import obstore
    from obstore.store import HTTPStore

    try:
        with _in_our_terms():
            return await held(obstore.head_async(store, key))
    except StoreError as refused:
        if isinstance(refused, ObjectMissing | ObjectChanged) or isinstance(store, HTTPStore):
            raise
        refusal = refused
    raise await _said(store, key) or refusal


async def _said(store: ObjectStore, key: str) -> StoreError | None:
    """Ask for a byte of an object that could not be described: to HEAD, a cloud gives no reason."""
    try:
        await fetch(store, key, 0, 1, described=False)
    except (OutsideObject, Transient):
        return None
    except StoreError as error:
        return error
    return None


async def write(store: ObjectStore, key: str, data: bytes) -> None:
    """Write an object in one piece: it is there whole, or not at all. Raises as `fetch` does."""
    import obstore

    with _in_our_terms():
        await held(obstore.put_async(store, key, data, use_multipart=False))


def open_upload(store: ObjectStore, key: str, part_bytes: int, parts: int) -> AsyncWritableFile:
    """Begin an object that is sent in parts, so many on their way at once; a small one goes in one piece."""
    import obstore

    return obstore.open_writer_async(store, key, buffer_size=part_bytes, max_concurrency=parts)


async def add(writer: AsyncWritableFile, data: bytes) -> None:
    """Add bytes to an upload; waits where too many parts are on their way. Raises as `fetch` does."""
    with _in_our_terms():
        await held(writer.write(data))


async def complete(writer: AsyncWritableFile) -> None:
    """Send what is left of an upload and give the object its name. Raises as `fetch` does.

    Raises:
        AbortFailed: it failed, and throwing away what was sent failed as well.
    """
    with _in_our_terms():
        await held(writer.close())


async def abandon(writer: AsyncWritableFile) -> None:
    """Throw away the parts of an upload that will not be completed. Raises as `complete` does."""
    with _in_our_terms():
        await held(writer.__aexit__(StoreError, StoreError("abandoned"), None))


async def next_page(pages: Any) -> list[Mapping[str, Any]] | None:
    """Read the next descriptions of a listing; None after the last. Raises as `fetch` does."""
    with _in_our_terms():
        try:
            return list(await held(anext(pages)))
        except StopAsyncIteration:
            return None


def listing(store: ObjectStore, prefix: str, after: str | None = None) -> Any:
    """Begin a listing of all objects below a prefix, behind a key; its pages come from `next_page`."""
    import obstore

    return aiter(obstore.list(store, prefix or None, offset=after, chunk_size=PAGE))


async def level(store: ObjectStore, prefix: str) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Describe the objects directly below a prefix, and name the folders there. Raises as `fetch` does."""
    import obstore

    with _in_our_terms():
        found = await held(obstore.list_with_delimiter_async(store, prefix or None))
        return list(found["objects"]), list(found["common_prefixes"])


@contextmanager
def _in_our_terms() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not _is_of_obstore(error, OSError, ValueError):
            raise
        # Not `from error`: its text holds the URL with all that may be secret in it.
        raise meaning(error) from None


def _is_of_obstore(error: BaseException, *others: type[Exception]) -> bool:
    """Tell whether an error is one that obstore raises, be it by breaking, or one of some others."""
    from obstore.exceptions import BaseError

    return isinstance(error, (BaseError, *others)) or _is_panic(error)


def _is_panic(error: BaseException) -> bool:
    return type(error).__module__ in _PANICS


def meaning(error: BaseException) -> Exception:
    """Say in our terms what an error of obstore means."""
    from obstore import exceptions

    text = str(error)
    if _is_panic(error):
        return StoreError("the client of the store broke on this request: check the storage options for odd values")
    reason = reason_of(text)
    if _MISSING_BUCKET.search(text):
        return BucketMissing(reason)
    if _WRONG_REGION.search(text):
        expected = _REGION.search(text)
        return WrongRegion(next(filter(None, expected.groups())) if expected else None)
    if _EXPIRED.search(text):
        return AccessDenied(f"the credentials have expired ({reason})")
    if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return ObjectMissing(reason)
    if is_of_abort(text):
        return AbortFailed(reason)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return AccessDenied(reason)
    if isinstance(error, exceptions.PreconditionError | exceptions.NotModifiedError):
        return ObjectChanged(reason)
    if isinstance(error, exceptions.NotSupportedError) and "Range" in text:
        return RangesIgnored(
            "the server answers a request for a range with the whole object; use one that serves ranges, or download "
            "the file and give its local path"
        )
    # The parts of an upload fail with a bare OSError, whatever it was.
    if not isinstance(error, exceptions.GenericError) and type(error) is not OSError:
        return StoreError(reason)
    if "169.254.169.254" in text or "InstanceMetadata" in text:
        return AccessDenied("no credentials were found: give them as storage options or in the environment")
    return of_status(text, reason)


async def region_of(store: ObjectStore, bucket: str) -> str | None:
    """Ask a server without credentials where a bucket of S3 is; None if it does not say."""
    config: Any = getattr(store, "config", {})
    given = config.get("endpoint") or next(
        (value for name in _ENDPOINTS if (value := dict(variables("s3")).get(name))), None
    )
    virtual = given and str(config.get("virtual_hosted_style_request", "false")).lower() == "true"
    root = given or "https://s3.amazonaws.com"
    answer = await probe(root, "" if virtual else bucket, {})
    return None if answer is None else answer.headers.get("x-amz-bucket-region")


def described(meta: Mapping[str, Any]) -> tuple[int, str | None, datetime | None, str | None]:
    """Give an object's size, etag, time of change and version, as obstore describes it."""
    return meta["size"], meta["e_tag"], meta["last_modified"], meta["version"]
