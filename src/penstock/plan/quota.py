"""Which of many is picked at place k, so that each has its exact part of every beginning.

A binary tree: a node is given picks 0, 1, 2, … and sends its c-th one left whenever the rounded count
⌊c·l/w + ½⌋ of its left side goes up. So how many of any number of picks have come to a stream is a few
divisions, and so is the reverse. Light streams are joined first (as in Huffman's code), which keeps rounding
from adding up: the count of a stream after any number of picks is within 1.7 of exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import cached_property

import numpy as np

MAX_SUM = 2**31
"""Of the weights: a product of two of them fits 64 bits."""
TABLE_SUM = 2**14
"""Up to which picks are looked up: a table that stays in a core's cache."""


class QuotaTree:
    """Picks among streams by whole weights.

    Args:
        weights: positive integers, one per stream, with a sum of at most 2**31.
        names: one per stream, to make the tree independent of the streams' order.

    >>> tree = QuotaTree([2, 3], ["a", "b"])
    >>> tree.pick(np.arange(10))[0].tolist()
    [1, 0, 1, 0, 1, 1, 0, 1, 0, 1]
    >>> tree.counts(1000)
    [400, 600]
    """

    def __init__(self, weights: Sequence[int], names: Sequence[str]) -> None:
        assert sum(weights) <= MAX_SUM, "whole_numbers() keeps to this"
        self._size, self._sum = len(weights), sum(weights)
        nodes: list[tuple[int, int, int, int]] = []  # weight of all, of the left side, left, right
        self._above: dict[int, tuple[int, bool]] = {}
        heap = [(weight, 0, name, ~stream) for stream, (weight, name) in enumerate(zip(weights, names, strict=True))]
        heapq.heapify(heap)
        while len(heap) > 1:
            light, heavy = heapq.heappop(heap), heapq.heappop(heap)
            for side, is_left in ((heavy, True), (light, False)):
                self._above[side[3]] = (len(nodes), is_left)
            nodes.append((light[0] + heavy[0], heavy[0], heavy[3], light[3]))
            heapq.heappush(heap, (light[0] + heavy[0], len(nodes), "", len(nodes) - 1))
        self._root = heap[0][3]
        self._nodes = np.array(nodes, np.int64).reshape(-1, 4)

    def pick(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give what is picked at places.

        Args:
            places: int64 [n], 0 or more.

        Returns:
            int64 [n], the stream; int64 [n], how many picks of that stream come before.

        Cost: O(log streams) vectorised steps on average, about 30 ns a place and step; two look-ups in a table where
        the weights' sum, after which all begins anew, is small.
        """
        if self._table is None:
            return self._descend(places)
        # A division by one number is done without dividing, but not together with its remainder.
        rounds = places // self._sum
        within = places - rounds * self._sum
        table, weights = self._table
        streams = table[0].take(within)
        return streams, table[1].take(within) + rounds * weights.take(streams)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Give the picks of one round of all weights, int64 [2, sum], and the weights; None: there are too many."""
        if self._sum > TABLE_SUM:
            return None
        return np.stack(self._descend(np.arange(self._sum))), np.array(self.counts(self._sum))

    def _descend(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Go down the tree from the root with all places at once."""
        streams = np.zeros(len(places), np.int64)
        ordinals = np.array(places, np.int64)
        if self._size == 1:
            return streams, ordinals
        which, node, picks = np.arange(len(places)), np.full(len(places), self._root), ordinals
        while which.size:
            weight, left_weight, left, right = self._nodes[node].T
            rounds, within = np.divmod(picks, weight)
            goes, rest = np.divmod(within * left_weight + weight // 2, weight)
            lefts = rounds * left_weight + goes
            is_left = rest + left_weight >= weight
            picks = np.where(is_left, lefts, picks - lefts)
            node = np.where(is_left, left, right)
            done = node < 0
            streams[which[done]] = ~node[done]
            ordinals[which[done]] = picks[done]
            which, node, picks = which[~done], node[~done], picks[~done]
        return streams, ordinals

    def counts(self, picks: int) -> list[int]:
        """Count each stream's picks among the first so many."""
        counts = [0] * self._size
        waiting = [(self._root, picks)]
        while waiting:
            node, here = waiting.pop()
            if node < 0:
                counts[~node] = here
                continue
            weight, left_weight, left, right = self._nodes[node].tolist()
            lefts = (here * left_weight + weight // 2) // weight
            waiting += [(left, lefts), (right, here - lefts)]
        return counts

    def picks_until(self, stream: int, count: int) -> int:
        """Give the fewest picks in which a stream is picked so often (once at least)."""
        side = ~stream
        while side != self._root:
            node, is_left = self._above[side]
            weight, left_weight = self._nodes[node, :2].tolist()
            half = weight // 2
            if is_left:
                count = -((half - count * weight) // left_weight)
            else:
                count = ((count - 1) * weight + half) // (weight - left_weight) + 1
            side = node
        return count
