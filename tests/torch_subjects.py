"""Datasets of torch's own kinds. Apart from `subjects`, so that workers of other tests need not import torch."""

from __future__ import annotations

import torch


class Ids(torch.utils.data.Dataset):
    """A torch dataset of plain integers."""

    def __init__(self, size: int = 20) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Endless(torch.utils.data.IterableDataset):
    """A torch IterableDataset, which has no ids; with a length it looks like a map-style one."""

    def __len__(self) -> int:
        return 10

    def __iter__(self):
        return iter(range(10))


class Items(torch.utils.data.Dataset):
    """A torch dataset of given items."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]
