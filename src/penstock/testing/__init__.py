"""The laws of exact loading, as checks for anyone's test-suite.

A check takes your dataset, or a function that makes your loader, and raises an AssertionError that
says which law was broken and where. The loaders need not be penstock's: whatever is iterated for
the rest of an epoch and has `state_dict`, `load_state_dict` and `close` will do.

    def test_my_dataset_keeps_the_laws():
        check_fetch(MyDataset())
        check_lanes(MyDataset(), batch_size=4, shuffle=True)
        check_resume(lambda: StreamingDataLoader(MyDataset(), 4, shuffle=True))
"""

from penstock.testing.comparing import first_difference
from penstock.testing.datasets import CountingDataset, LatencyDataset
from penstock.testing.footprint import Footprint
from penstock.testing.laws import (
    check_close,
    check_elastic,
    check_epoch_is_permutation,
    check_fetch,
    check_lanes,
    check_order_law,
    check_resume,
    check_state_size,
)
from penstock.testing.round_laws import check_rounds

__all__ = [
    "CountingDataset",
    "Footprint",
    "LatencyDataset",
    "check_close",
    "check_elastic",
    "check_epoch_is_permutation",
    "check_fetch",
    "check_lanes",
    "check_order_law",
    "check_resume",
    "check_rounds",
    "check_state_size",
    "first_difference",
]
