"""The claims that one tracker made, and the identity that its tokens carry.

A token names the tracker that made the claim, so another tracker cannot complete it, whatever gpu_id it
says. A forked child's copy gets an identity of its own and holds nothing: else parent and child could both
complete one claim.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import weakref

from penstock.ledger.ledger import Claim, stale_claim

_all_holdings: weakref.WeakSet[Holdings] = weakref.WeakSet()


class Holdings:
    """The claims of one tracker in one process; threads may share it."""

    def __init__(self) -> None:
        self._begin()
        _all_holdings.add(self)

    def new_token(self) -> str:
        """Make the token of a claim about to be asked for."""
        return f"{self._id}:{next(self._numbers)}"

    def add(self, claim: Claim) -> None:
        """Remember a claim that was granted."""
        with self._lock:
            self._claims[claim.block_id, claim.chunk_id] = claim

    def of_chunk(self, epoch: int, block_id: int, chunk_id: int, gpu_id: int | str) -> Claim:
        """Give the claim on a chunk.

        Raises:
            StaleClaim: there is none; epoch and gpu_id are for the message.
        """
        with self._lock:
            claim = self._claims.get((block_id, chunk_id))
        if claim is None:
            asked = Claim(
                epoch=epoch, block_id=block_id, chunk_id=chunk_id, sample_offset=0, token="", gpu_id=gpu_id, lease_s=0
            )
            raise stale_claim(asked, "this tracker has not claimed the chunk, or is done with it")
        return claim

    def check(self, claim: Claim) -> None:
        """Raise StaleClaim for a claim that another tracker made."""
        if claim.token.partition(":")[0] != self._id:
            raise stale_claim(claim, "another tracker made it, or this process's parent before a fork")

    def drop(self, claim: Claim) -> None:
        """Forget a claim that has come to its end."""
        with self._lock:
            if self._claims.get((claim.block_id, claim.chunk_id)) == claim:
                del self._claims[claim.block_id, claim.chunk_id]

    def _begin(self) -> None:
        self._id = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._claims: dict[tuple[int, int], Claim] = {}
        self._lock = threading.Lock()


def _after_fork_in_child() -> None:
    for holdings in list(_all_holdings):
        holdings._begin()


os.register_at_fork(after_in_child=_after_fork_in_child)
