"""Which of a Trainer's loaders have rounds, where they stand, and where they are put.

training    one or several with rounds of one length; the first says which round it is
validation  with rounds: put at the round whose turn it is; without: at the start of the dataset; others: left alone
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from penstock.errors import ConfigError
from penstock.loader.loader import StreamingDataLoader
from penstock.train.evaluation_rounds import EvaluationRounds
from penstock.types import check_choice

ValidationMode = Literal["rotate", "fixed", "full"]
"""Validate on the next round each time, on the first always, or on all there is."""


_AFTER_AN_EPOCH = "a checkpoint written after an epoch's end, as ModelCheckpoint(save_on_train_epoch_end=True) does"


def choose_mode(*asked: ValidationMode | None) -> ValidationMode | None:
    """Give the one mode that is asked for.

    Raises:
        ConfigError: there are two, or it is none of the three.
    """
    given = [mode for mode in asked if mode is not None]
    for mode in given:
        check_choice("val_mode", mode, ("rotate", "fixed", "full"))
    if len(set(given)) > 1:
        raise ConfigError(f"val_mode is {given[0]!r} for the callback and {given[1]!r} for the data module: give one")
    return given[0] if given else None


def flat(loaders: Any) -> list[Any]:
    """List the loaders in what a Trainer calls its loaders: one, a collection of them in any depth, or None.

    >>> flat({"a": 1, "b": [2, (3, 4)]}), flat(None)
    ([1, 2, 3, 4], [])
    """
    if loaders is None:
        return []
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if not isinstance(loaders, list | tuple):
        return [loaders]
    return [leaf for each in loaders for leaf in flat(each)]


def has_rounds(loader: Any) -> bool:
    """Tell whether a loader goes by rounds of a plan."""
    if not isinstance(loader, StreamingDataLoader):
        return False
    try:
        return loader.batch_in_round >= 0
    except ConfigError:
        return False


def adapts(loader: StreamingDataLoader) -> bool:
    """Tell whether a policy decides how long the rounds of a loader are."""
    return "history" in loader.state_dict()


def with_rounds(loaders: Iterable[Any]) -> list[StreamingDataLoader]:
    """Give those of a Trainer's loaders that have rounds."""
    return [loader for loader in loaders if has_rounds(loader)]


def training_rounds(loaders: Iterable[Any]) -> list[StreamingDataLoader]:
    """Give those of a Trainer's training loaders that have rounds.

    Raises:
        ConfigError: none has, one is there twice, or their rounds differ in length.
    """
    found = with_rounds(loaders)
    if not found:
        raise ConfigError(
            "RoundsCallback found no training loader with rounds: give StreamingDataLoader round_batches=, "
            "ChunkedDataLoader a chunk_size, or leave the callback out"
        )
    if len({id(loader) for loader in found}) < len(found):
        raise ConfigError("a training loader is there twice, and it has one cursor: give copy.copy(loader)")
    if len(lengths := sorted({len(loader) for loader in found})) > 1:
        raise ConfigError(
            f"the training loaders have rounds of {lengths} batches, and an epoch ends for all of them at once: give "
            "them rounds of one length"
        )
    return found


def placed(loaders: Iterable[Any]) -> list[StreamingDataLoader]:
    """Give those of a Trainer's training loaders whose place is kept: all by plan, with rounds or in whole epochs."""
    return [
        loader
        for loader in loaders
        if isinstance(loader, StreamingDataLoader) and (has_rounds(loader) or _has_length(loader))
    ]


def _has_length(loader: StreamingDataLoader) -> bool:
    try:
        return len(loader) >= 0
    except TypeError:
        return False


def check_constant_length(loader: StreamingDataLoader, expected: float, reloads: int) -> None:
    """Refuse rounds of several lengths where the Trainer asks for the length only once.

    Args:
        loader: stands in the round that is about to be trained.
        expected: batches that the Trainer expects in an epoch.
        reloads: `reload_dataloaders_every_n_epochs`.

    Raises:
        ConfigError: another loader decides how long an epoch is, or not all rounds are as long as this one.
    """
    if len(loader) != expected:
        mode = "min_size" if len(loader) < expected else "max_size_cycle"
        raise ConfigError(
            f"round {loader.round} has {len(loader)} batches, and the Trainer expects {expected}, because of the "
            f"loaders beside it: give StreamingDataLoaders rounds of one length, and torch's DataLoaders together with "
            f"them as CombinedLoader(loaders, {mode!r})"
        )
    if reloads == 1 or adapts(loader):
        return
    # A copy has a cursor of its own, and a loader that is not iterated over reads nothing.
    last = copy.copy(loader)
    last.set_round(loader.total_rounds - 1)
    if len(last) == expected:
        return
    asking = "Trainer(reload_dataloaders_every_n_epochs=1), which asks for the length before each"
    if loader.batch_in_round:
        raise ConfigError(
            f"the checkpoint was written in the middle of a round of {expected} batches, and rounds have {len(last)} "
            f"now, which the Trainer is not told of: resume with rounds of {expected} (train_chunk_size=, or "
            f"round_batches=), or with {asking}"
        )
    raise ConfigError(
        f"round {loader.round} has {expected} batches, and the last of each cycle has {len(last)}, which the Trainer "
        f"is not told of: let rounds go on through cycles (boundary='carry', or remainder=, the default), or give "
        f"{asking}"
    )


def check_in_step(loader: StreamingDataLoader, next_batch: int, num_batches: float) -> None:
    """Refuse to train where an epoch of the Trainer's and the loader's round would end apart.

    Args:
        loader: where it stands.
        next_batch: of the Trainer's epoch.
        num_batches: in an epoch of the Trainer's.

    Raises:
        ConfigError: they stand in different places.
    """
    done = loader.batch_in_round
    if next_batch == done:
        return
    raise ConfigError(
        f"the Trainer is about to train batch {next_batch} of an epoch of {num_batches}, and the loader stands at "
        f"batch {done} of round {loader.round}, so rounds and validations would no longer meet. After an interrupted "
        "fit, resume with fit(ckpt_path=…), or go to a round's start with loader.set_round(…). A checkpoint written in "
        "the middle of an epoch without rounds, or of rounds of another length, cannot be resumed with these: take "
        f"{_AFTER_AN_EPOCH}"
    )


def check_validation(
    validation: Iterable[Any], training: Iterable[StreamingDataLoader], report: Sequence[str] = ()
) -> None:
    """Refuse before the first batch what would otherwise be refused, or go wrong, after the first round.

    Args:
        validation: loaders.
        training: loaders.
        report: metrics that a policy is to be told of.

    Raises:
        ConfigError: a loader is for both, a policy decides how long rounds of validation are, or nobody reads a report.
    """
    trained = list(training)
    if report and not any(has_rounds(loader) and adapts(loader) for loader in trained):
        raise ConfigError(
            f"report={list(report)}: no training loader has a policy that would read it; leave it out, or give "
            "round_batches= a function of the history"
        )
    for loader in validation:
        own = loader.loader if isinstance(loader, EvaluationRounds) else loader
        if any(own is each for each in trained):
            raise ConfigError(
                "the training loader is given for validation too, and each validation would move it: give a loader of "
                "its own, such as copy.copy(loader)"
            )
        if has_rounds(own) and adapts(own):
            raise ConfigError(
                "a policy decides how long the rounds of a validation loader are, and validation must go to a round "
                "whenever it is its turn: give its round_batches= a number"
            )


def check_is_over(fit_loop: Any) -> None:
    """Refuse to go on without rounds where an epoch that was one is still under way.

    Args:
        fit_loop: the Trainer's, after it has loaded the checkpoint's progress.

    Raises:
        ConfigError: Lightning would look for a loader that takes the state of the round, and there is none.
    """
    if fit_loop.restarting:
        raise ConfigError(
            "the checkpoint was written within a round, before its epoch was over, and without train_chunk_size= and "
            "val_chunk_size= there are no rounds to go on with: resume with the sizes it was written with, or, by "
            f"max_epochs and not max_steps, from {_AFTER_AN_EPOCH}"
        )


def put_at_round(loaders: Sequence[Any], number: int) -> None:
    """Put validation loaders where the next validation begins.

    Args:
        loaders: with rounds: they go to `number`; other loaders of ours go back to the start of their dataset, should
            they have been left in the middle; all else has no place to be put at.
        number: the round.

    Raises:
        ConfigError: a loader with rounds is there twice, so that the second pass would give the round after.
    """
    moved = [loader for loader in loaders if has_rounds(loader)]
    if len({id(loader) for loader in moved}) < len(moved):
        raise ConfigError(
            "a validation loader is there twice, and the second time it would give the next round: wrap it, "
            "loader = EvaluationRounds(loader), or give copy.copy(loader)"
        )
    for loader in loaders:
        if isinstance(loader, EvaluationRounds) or has_rounds(loader):
            loader.set_round(number)
        elif isinstance(loader, StreamingDataLoader):
            state = loader.state_dict()
            if 0 < state["samples"] < state.get("num_samples", 0):
                loader.load_state_dict({**state, "samples": 0})


def label(loader: StreamingDataLoader) -> str:
    """Say in words which round a loader stands in: which of how many that begin in which cycle."""
    if adapts(loader) or loader.batch_size is None:
        return f"round {loader.round + 1}, cycle {loader.cycle}"
    state = loader.state_dict()
    begun = state["samples"] // (loader.batch_size * loader.world.dp_size) - state["batch"]
    place = max(0, begun) // state["round_batches"]
    return f"round {place + 1}/{loader.total_rounds}, cycle {loader.cycle}"
