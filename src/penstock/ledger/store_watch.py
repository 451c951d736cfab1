"""When leases end, without a clock that nodes share: each process goes by what it has seen itself.

An onlooker counts from the moment at which it first saw a lease's latest heartbeat; the holder from before it sent
it. So the holder always gives up before anyone else may take the chunk.
"""

from __future__ import annotations

import time

from penstock.ledger.block_document import BlockDocument, Lease
from penstock.ledger.ledger import Claim, stale_claim

MAX_SEEN = 10_000


class LeaseWatch:
    """What one process knows about heartbeats: its own, and those of others."""

    def __init__(self) -> None:
        # When this process last renewed its own leases, by token.
        self._renewed: dict[str, float] = {}
        # The heartbeat last seen of each lease, and when it was first seen.
        self._seen: dict[str, tuple[int, float]] = {}

    def renewed(self, token: str, at: float) -> None:
        """Note that a lease of ours was renewed by what was sent at `at`, on the monotonic clock."""
        self._renewed[token] = at

    def forget(self, token: str) -> None:
        """A lease of ours has come to its end."""
        self._renewed.pop(token, None)

    def left_s(self, lease: Lease) -> float:
        """How much longer a lease lasts, as seen from here; 0 or less: it has ended."""
        now = time.monotonic()
        beat, since = self._seen.get(lease.token, (-1, now))
        if beat != lease.beat:
            since = now
            self._seen.pop(lease.token, None)
            self._seen[lease.token] = (lease.beat, now)
            if len(self._seen) > MAX_SEEN:
                # The one with the oldest heartbeat: its lease is over, or will be watched from its beginning again.
                del self._seen[next(iter(self._seen))]
        return since + lease.lease_s - now

    def free_ended(self, document: BlockDocument) -> None:
        """Take the chunks of a block from holders whose leases have ended."""
        for chunk, lease in list(document.held.items()):
            if self.left_s(lease) <= 0:
                document.give_back(chunk)

    def lease_of(self, document: BlockDocument, claim: Claim) -> Lease:
        """Give the lease of a claim of ours.

        Raises:
            StaleClaim: it does not hold; says what became of it.
        """
        lease, done = document.held.get(claim.chunk_id), document.done.get(claim.chunk_id)
        ended_s = time.monotonic() - self._renewed.get(claim.token, float("-inf")) - claim.lease_s
        if done is not None:
            what = f"gpu {done.gpu_id} has completed it (number {done.sequence})"
        elif lease is None:
            what = f"its lease of {claim.lease_s:g} s ended, or the chunk was given back or opened again"
        elif lease.token != claim.token:
            what = f"its lease of {claim.lease_s:g} s ended and gpu {lease.gpu_id} holds the chunk now"
        elif ended_s >= 0:
            what = f"its lease of {claim.lease_s:g} s ended {ended_s:.1f} s ago"
        else:
            return lease
        raise stale_claim(claim, what)
