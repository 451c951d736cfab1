"""A client of one place, and what may be secret about it; made anew when its credentials are refused.

Credentials end while a run goes on. Where there is a function to ask for new ones (`credential_provider`
of the clouds, `headers` that are a function), a refusal leads to that function, once for all requests
that were refused meanwhile, and the request is made again. A refusal that follows is final.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from penstock.errors import AccessDenied, ConfigError
from penstock.store import objects
from penstock.store.probe import leaving, redirects
from penstock.store.requests import Patience
from penstock.store.urls import HTTP, Place, login_of, parse_url, redact

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]
RENEWAL_S = 5.0
STAYING = frozenset(("authorization", "cookie", "cookie2", "proxy-authorization", "www-authenticate"))
"""Headers that clients keep to themselves where a server redirects them to another."""
HARMLESS = frozenset(
    ("accept", "accept-encoding", "accept-language", "user-agent", "cache-control", "range", "referer")
)
LASTING_S = 30.0
"""For how long it is remembered where another server has an object."""
MOST_TARGETS = 1 << 16
"""Shortest time between two renewals: who is refused right after one is refused for good."""


class Given:
    """The options that a store was opened with, kept out of sight of whatever prints the store.

    Args:
        options: by name.
    """

    __slots__ = ("options",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)


class Connection:
    """How objects of a place are reached. Nothing in it is ever printed.

    Args:
        place: where to.
        headers: sent with each request; a function is asked for them now, and again when they are refused.
        fixed: sent as well, never renewed.
        timeout_s: longest silence of the server.
        options: see `objects.connect`.

        headers_may_leave: all headers go along where another server is redirected to.

    Raises:
        ConfigError: an option that the store does not have, or headers that are none.
    """

    __slots__ = (
        "_fixed",
        "_given",
        "_lock",
        "_options",
        "_place",
        "_renewed",
        "_sent",
        "_targets",
        "client",
        "guarded",
        "headers",
        "timeout_s",
    )

    def __init__(
        self,
        place: Place,
        *,
        headers: Headers | None,
        fixed: Mapping[str, str],
        timeout_s: float,
        options: Mapping[str, Any],
        headers_may_leave: bool = False,
    ) -> None:
        self._targets: dict[str, tuple[float, ObjectStore, str]] = {}
        self._place, self._given, self._fixed = place, headers, fixed
        self.timeout_s, self._options = timeout_s, options
        self._lock: asyncio.Lock | None = None
        self._renewed = float("-inf")
        self.headers = self._headers_now()
        more = (options.get("client_options") or {}).get("default_headers") or {}
        self._sent = {str(name): str(value) for name, value in more.items()}
        names = {name.lower() for name in (*self.headers, *self._sent)}
        self.guarded = place.scheme in HTTP and not headers_may_leave and not names <= STAYING | HARMLESS
        """Whether headers are sent that a client would take along to any server it is redirected to."""
        self.client = objects.connect(place, self.headers, timeout_s, options)

    def __repr__(self) -> str:
        return "Connection()"

    def patient(self, patience: Patience) -> Any:
        """Make a client that tries again by itself."""
        return objects.connect(self._place, self.headers, self.timeout_s, self._options, patience=patience)

    @property
    def renewable(self) -> bool:
        """Whether there is a function to ask for new credentials."""
        return callable(self._given) or "credential_provider" in self._options

    async def target(self, key: str) -> tuple[ObjectStore, str]:
        """Give the client and key by which an object is read, on the background thread.

        Where headers must not leave their server, that is asked first where the object is, and another server is
        then asked without them.

        Raises:
            Transient: no answer.
        """
        if not self.guarded:
            return self.client, key
        known = self._targets.get(key)
        if known is not None and monotonic() < known[0] + LASTING_S:
            return known[1], known[2]
        onward = leaving(await redirects(self._place.root, key, {**self._sent, **self.headers}, self.timeout_s))
        client, there = self.client, key
        if onward is not None:
            place = parse_url(onward)
            client, there = objects.connect(place, {}, self.timeout_s, {}), place.key
        if len(self._targets) >= MOST_TARGETS:
            self._targets.clear()
        self._targets[key] = monotonic(), client, there
        return client, there

    async def helps(self, key: str, refusal: Exception, began: float) -> bool:
        """See what can be done about a refusal, on the background thread: forget where an object was, or `renew`."""
        known = self._targets.pop(key, None)
        if known is not None and known[1] is not self.client:
            return True
        return isinstance(refusal, AccessDenied) and await self.renew(began)

    async def way_to(self, key: str) -> str:
        """Say which URLs lead to an object, one after the other; without what may be secret."""
        sent = {**self._sent, **self.headers}
        return " → ".join(map(redact, await redirects(self._place.root, key, sent, self.timeout_s)))

    async def renew(self, began: float) -> bool:
        """Ask for new credentials, after a request that began at a time was refused; on the background thread.

        Args:
            began: by `time.monotonic`.

        Returns:
            Whether the client is another than the one that was refused.

        Raises:
            AccessDenied: the function failed.
        """
        if not self.renewable:
            return False
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            if self._renewed >= began:
                return True
            if monotonic() - self._renewed < RENEWAL_S:
                return False
            self.headers = await asyncio.to_thread(self._ask)
            self.client = objects.connect(self._place, self.headers, self.timeout_s, self._options, fresh=True)
            self._targets.clear()
            self._renewed = monotonic()
            return True

    def _ask(self) -> dict[str, str]:
        try:
            return self._headers_now()
        except Exception as error:  # noqa: BLE001  the function is the user's
            # Not its text, nor `from error`: they may hold what it was to renew.
            name = type(error).__name__
            raise AccessDenied(
                f"the function that renews headers failed ({name}): call it by hand to see why"
            ) from None

    def _headers_now(self) -> dict[str, str]:
        found = self._given() if callable(self._given) else self._given or {}
        if not isinstance(found, Mapping) or not all(isinstance(part, str) for pair in found.items() for part in pair):
            raise ConfigError("headers must be a mapping of names to texts, or a function that gives one")
        login = login_of(self._place.root) if self._place.scheme in HTTP else {}
        return {**login, **found, **self._fixed}
