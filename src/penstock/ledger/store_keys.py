"""Short texts under keys of a torch.distributed store, each read and exchanged as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from penstock.errors import ConfigError, LedgerError
from penstock.node.turns import Patience

# Asking a store to exchange this for itself reads a key, and makes none.
_NOTHING = "-"


class Store(Protocol):
    """What is needed of a torch.distributed store."""

    def compare_set(self, key: str, expected_value: str, desired_value: str, /) -> bytes:
        """Write the desired value if the key has the expected one; give the one it has then."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number and give it."""


class StoreKeys:
    """The keys of one ledger in a store.

    Args:
        store: any store with `compare_set` and `add`.
        prefix: put before each key.
        timeout_s: how long a change may be tried against others.
    """

    def __init__(self, store: Store, prefix: str, *, timeout_s: float) -> None:
        if not hasattr(store, "compare_set"):
            raise ConfigError(f"store must be a torch.distributed store, got {store!r} ({type(store).__name__})")
        self.prefix = prefix
        self._store = store
        self._timeout_s = timeout_s
        self._process = os.getpid()

    def read(self, key: str) -> str | None:
        """Give the text of a key; None if it has none."""
        found = self.exchange(key, _NOTHING, _NOTHING)
        return None if found == _NOTHING else found

    def exchange(self, key: str, before: str, after: str) -> str:
        """Write `after` if the key has the text `before`, or, if that is empty, none; give the text it has then.

        Raises:
            LedgerError: the store does not answer, or this process is a fork of the one it belongs to.
        """
        self._check_process()
        try:
            return self._store.compare_set(self.prefix + key, before, after).decode()
        except RuntimeError as error:
            raise self._lost(error) from error

    def add(self, key: str, amount: int) -> int:
        """Add to a count and give it."""
        self._check_process()
        try:
            return self._store.add(self.prefix + key, amount)
        except RuntimeError as error:
            raise self._lost(error) from error

    def change(self, key: str, change: Callable[[str | None], str | None]) -> None:
        """Replace a key's text by what `change` makes of it, again until nobody else came between.

        Args:
            key: the key.
            change: text, or None where there is none → the new one, or None to leave it.

        Raises:
            LedgerError: others came between until the deadline.
        """
        patience = self.patience()
        while True:
            before = self.read(key)
            after = change(before)
            if after is None or after == before or self.exchange(key, before or "", after) == after:
                return
            patience.pause()

    def patience(self) -> Patience:
        """Begin to wait for others."""
        waiting_for = f"a change of {self.prefix} in the store, which others change all the time"
        return Patience(self._timeout_s, waiting_for, LedgerError)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise LedgerError(
                "this process is a fork of the one that connected to the store, and they would talk over the same "
                "connection: connect a store of its own and make a new StoreLedger"
            )

    def _lost(self, error: RuntimeError) -> LedgerError:
        return LedgerError(
            f"the store of the ledger {self.prefix} does not answer ({str(error).splitlines()[0]}). If the process "
            "that serves it has ended, what was recorded is gone with it: begin a new one with import_json and the "
            "latest export; chunks completed since then are trained again"
        )
