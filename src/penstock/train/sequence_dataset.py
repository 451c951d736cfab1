"""Three partitions of a dataset and the loaders over them, by rounds or not.

setup() ──▶ dataset_train, dataset_val, dataset_test
                  │             │            │
            train_chunk_size  val_chunk_size │         neither given: three torch DataLoaders
                  ▼             ▼            ▼         either given:  rounds; a partition without a size
             a round of so many batches   all of it                   is one round, the whole of it
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

from penstock.errors import ConfigError
from penstock.loader.settings import INSTEAD, parameters_of, refuse_unknown
from penstock.train.chunked_dataloader import ChunkedDataLoader
from penstock.train.round_config import check_chunk_size

# Which samples come how often and in which order, and who gets them: evaluation has each once, in order.
_OF_TRAINING = {
    *("shuffle", "drop_last", "boundary", "sampler", "batch_sampler"),
    *("chunk_weights", "weight_floor", "length_bucket", "window"),
    *("assignment", "tracker", "dataset_chunk_size", "stop_after", "uneven"),
}


class ChunkedSequenceDataset:
    """Training, validation and test sets, and loaders over them whose rounds are set by two sizes.

    Give the sets, or make a subclass whose `setup` makes them; it is called when the first loader is asked for, unless
    they are there by then. Where neither size is given, every loader is what `torch.utils.data.DataLoader(dataset,
    **options)` gives, and nothing else is done.

    Args:
        train_chunk_size: batches per process in a round of training. None: a round is the whole training set, if
            `val_chunk_size` is given.
        val_chunk_size: batches per process in a round of validation. None: the whole set, if `train_chunk_size` is
            given.
        dataset_train: what is trained on.
        dataset_val: what is validated on after each round.
        dataset_test: what is tested on, always all of it.
        **options: of the loaders, for each that is not told otherwise; see `ChunkedDataLoader`. What decides which
            samples come in which order, as `shuffle`, `drop_last`, `boundary`, `chunk_weights` and `assignment` do, is
            for training only: evaluation is in order and complete unless the call says otherwise. A round of
            evaluation that is left before its end begins anew in the next iteration.

    Raises:
        ConfigError: no loader takes an option; a size is no integer from 1 to 2**62.

    >>> data = ChunkedSequenceDataset(train_chunk_size=2, dataset_train=range(10), dataset_val=range(3), batch_size=4)
    >>> [len(data.train_dataloader()), len(data.val_dataloader()), len(data.test_dataloader())]
    [2, 1, 0]
    >>> data.train_chunk_size, data.val_chunk_size, data.explicit_val_chunk_size
    (2, 1, None)
    """

    def __init__(
        self,
        train_chunk_size: int | None = None,
        val_chunk_size: int | None = None,
        *,
        dataset_train: Any = None,
        dataset_val: Any = None,
        dataset_test: Any = None,
        **options: Any,
    ) -> None:
        check_loader_options(type(self), options)
        self.set_chunk_sizes(train_chunk_size, val_chunk_size)
        self.dataset_train = dataset_train
        self.dataset_val = dataset_val
        self.dataset_test = dataset_test
        self._options = options

    @property
    def use_chunked_training(self) -> bool:
        """Tell whether there are rounds: either of the sizes is given."""
        return self.explicit_train_chunk_size is not None or self.explicit_val_chunk_size is not None

    @property
    def train_chunk_size(self) -> int | None:
        """Batches of a training round: as given, or with rounds all of the set, counted after `setup`; else None."""
        if self.explicit_train_chunk_size is None and self.use_chunked_training:
            return len(self.train_dataloader())
        return self.explicit_train_chunk_size

    @property
    def val_chunk_size(self) -> int | None:
        """Batches of a validation round: as given, or with rounds all of the set, counted after `setup`; else None."""
        if self.explicit_val_chunk_size is None and self.use_chunked_training:
            return len(self.val_dataloader())
        return self.explicit_val_chunk_size

    def set_chunk_sizes(self, train_chunk_size: int | None, val_chunk_size: int | None) -> None:
        """Change the sizes of rounds, for loaders that are made from now on.

        Args:
            train_chunk_size: as for the constructor.
            val_chunk_size: as for the constructor.
        """
        self.explicit_train_chunk_size = check_chunk_size("train_chunk_size", train_chunk_size)
        self.explicit_val_chunk_size = check_chunk_size("val_chunk_size", val_chunk_size)

    def setup(self) -> None:
        """Make the sets `dataset_train`, `dataset_val`, `dataset_test`; one that stays None is not there."""

    def train_dataloader(self, **options: Any) -> Any:
        """Give a loader of training batches: rounds if either size is given, else a torch DataLoader.

        Args:
            **options: of the loader, before those of the constructor. Shuffled unless they say otherwise.

        Raises:
            ConfigError: there is nothing to train on, or an option cannot work.
        """
        self._set_up()
        if self.dataset_train is None or (self.use_chunked_training and _is_empty(self.dataset_train)):
            raise ConfigError(f"{self._name} has no training samples: dataset_train is empty or None after setup()")
        options = {**self._options, **options}
        if not {"sampler", "batch_sampler"} & options.keys():
            options.setdefault("shuffle", True)
        return self._loader(self.dataset_train, self.explicit_train_chunk_size, options)

    def val_dataloader(self, **options: Any) -> Any:
        """Give a loader of validation batches: rounds if either size is given, else a torch DataLoader.

        Args:
            **options: of the loader, before those of the constructor. In order and complete unless they say otherwise.

        Returns:
            The loader; an empty list where there is no validation set.

        Raises:
            ConfigError: there is no sample to train or validate on, or an option cannot work.
        """
        self._set_up()
        return self._evaluation(self.dataset_val, self.explicit_val_chunk_size, options)

    def test_dataloader(self, **options: Any) -> Any:
        """Give a loader of all test batches, never cut in rounds; otherwise as `val_dataloader`.

        Args:
            **options: of the loader, before those of the constructor. In order and complete unless they say otherwise.
        """
        self._set_up()
        return self._evaluation(self.dataset_test, None, options)

    def _set_up(self) -> None:
        """Have the sets made, unless they are there."""
        if self._has_no_set:
            self.setup()
        if self._has_no_set:
            raise ConfigError(
                f"{self._name}.setup() made none of dataset_train, dataset_val and dataset_test: set them there, or "
                "give them to the constructor"
            )
        if self.use_chunked_training and _is_empty(self.dataset_train) and _is_empty(self.dataset_val):
            raise ConfigError(
                f"{self._name} is to train by rounds and both partitions are empty: neither dataset_train nor "
                "dataset_val has a sample"
            )

    def _evaluation(self, dataset: Any, chunk_size: int | None, options: dict[str, Any]) -> Any:
        if dataset is None or (self.use_chunked_training and _is_empty(dataset)):
            return []
        kept = {name: value for name, value in self._options.items() if name not in _OF_TRAINING}
        if self.use_chunked_training:
            kept |= {"shuffle": False, "boundary": "short", "restart": "assignment" not in options}
        return self._loader(dataset, chunk_size, {**kept, **options})

    def _loader(self, dataset: Any, chunk_size: int | None, options: dict[str, Any]) -> Any:
        batch_size = options.pop("batch_size", 1)
        if self.use_chunked_training and chunk_size is None:
            # As many batches as there are samples are never fewer than the whole of it, whatever the world; they
            # are cut where the partition ends. What has no length is refused below.
            chunk_size = len(dataset) if isinstance(dataset, Sized) else 1
            options["boundary"] = "short"
        return ChunkedDataLoader(dataset, batch_size, chunk_size, **options)

    @property
    def _has_no_set(self) -> bool:
        return self.dataset_train is None and self.dataset_val is None and self.dataset_test is None

    @property
    def _name(self) -> str:
        return type(self).__name__


def check_loader_options(owner: type, options: Iterable[str]) -> None:
    """Refuse options that no loader takes, with rounds or without, before one is asked for.

    Args:
        owner: the class that was given them.
        options: their names.

    Raises:
        ConfigError: names the first, and what of the class's own arguments or of a loader's was meant.
    """
    known = {*parameters_of(ChunkedDataLoader), *INSTEAD}
    if unknown := [name for name in options if name not in known]:
        refuse_unknown(owner, unknown, ChunkedDataLoader)


def _is_empty(dataset: Any) -> bool:
    return dataset is None or (isinstance(dataset, Sized) and len(dataset) == 0)
