"""The orders in orders.json are frozen: a state saved by any release resumes them.

Changing one of them is a breaking change. An order that should differ gets a name of its own and
cases of its own here; these stay.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from penstock import Cursor, Plan, World
from penstock.plan.order import GlobalShuffle, LengthBuckets, Order, Sequential, WindowShuffle
from penstock.plan.rounds import WithinRounds
from penstock.plan.weighted import WeightedChunks

GOLDEN = json.loads(Path(__file__).with_name("orders.json").read_text())


def order_of(settings: dict) -> Order:
    """Build the order a case was made with."""
    kind, seed, size = settings["kind"], settings.get("seed", 0), settings.get("num_samples")
    if kind == "sequential":
        return Sequential(size)
    if kind == "global":
        return GlobalShuffle(size, seed)
    if kind == "window":
        return WindowShuffle(np.cumsum(settings["blocks"]), seed, settings["window"])
    if kind == "within":
        return WithinRounds(size, settings["round_samples"], seed=seed, across=settings["across"])
    if kind == "weighted":
        return WeightedChunks(size, settings["weights"], floor=settings["floor"], seed=seed)
    assert kind == "lengths"
    lengths = np.arange(size) * 7 % 13
    return LengthBuckets(
        order_of(settings["base"]), lengths, bucket=settings["bucket"], window=settings["window"], seed=seed
    )


@pytest.mark.parametrize(
    "case", GOLDEN["orders"], ids=lambda case: f"{case['name']}-seed{case['settings'].get('seed')}"
)
def test_an_order_is_what_it_was(case):
    order = order_of(case["settings"])
    assert order.name == case["name"]
    for epoch, ids in case["epochs"].items():
        offsets = case["offsets"] if "offsets" in case else range(order.num_samples)
        assert order.ids(int(epoch), np.array(offsets)).tolist() == ids, f"epoch {epoch}"


@pytest.mark.parametrize("case", GOLDEN["plans"], ids=lambda case: f"{case['remainder']}-{case['global_batch']}")
def test_a_plan_deals_out_what_it_did(case):
    plan = Plan(order=order_of(case["settings"]), global_batch=case["global_batch"], remainder=case["remainder"])
    for size, ranks in case["worlds"].items():
        for rank, epochs in enumerate(ranks):
            world, cursor = World(dp_rank=rank, dp_size=int(size)), Cursor()
            for steps in epochs:
                shares = list(plan.walk(cursor, world))
                assert [row for share in shares for row in share.ids.tolist()] == steps
                cursor = plan.next_epoch(shares[-1].after(len(shares[-1].ids) - 1))
