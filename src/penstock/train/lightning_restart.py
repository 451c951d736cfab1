"""What a checkpoint says of Lightning's own progress, where resuming from it would lose something.

batch ── on_train_batch_end ──┃ checkpoint ── validation ──     Lightning resumes as if that validation had been:
                                                                told that it was under way, it does it
batch 6 of 10 ── max_steps ───┃ checkpoint                      Lightning takes the epoch for complete and begins
                                                                another: told that it was under way, it goes on
"""

from __future__ import annotations

from typing import Any

_TRAINED = "epoch_loop.batch_progress"
_VALIDATED = "epoch_loop.val_loop.batch_progress"
_EPOCHS = "epoch_progress"


def expect_validation(trainer: Any, checkpoint: dict[str, Any], num_batches: int) -> bool:
    """Change a checkpoint so that the validation is done that it was written just before, if it was.

    Args:
        trainer: the Lightning Trainer that resumes.
        checkpoint: as Lightning loaded it, before it has looked at its loops' progress; changed in place.
        num_batches: in a round.

    Returns:
        Whether it was.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    if not {_TRAINED, _VALIDATED, _EPOCHS} <= loops.keys() or not trainer.enable_validation:
        return False
    trained = loops[_TRAINED]
    done, total = trained["current"], trained["total"]
    is_in_hook = done["ready"] == done["processed"] == done["completed"] + 1
    if not is_in_hook or not _is_due(trainer, loops, num_batches):
        return False
    loops[_TRAINED] = {
        **trained,
        "current": {**done, "completed": done["processed"]},
        "total": {**total, "completed": total["processed"]},
    }
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    loops[_VALIDATED] = {**loops[_VALIDATED], "total": begun, "current": dict(begun), "is_last_batch": False}
    return True


def loader_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Give the states of loaders of ours that Lightning saved by itself; None: there are none."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    saved = loops.get("state_dict", {}).get("combined_loader", [])
    return [state for state in saved if {"version", "order", "samples"} <= state.keys()] or None


def reopen_epoch(checkpoint: dict[str, Any], num_trained: int) -> None:
    """Change a checkpoint so that an epoch is gone on with that `max_steps`, or a callback, ended within a round.

    Args:
        checkpoint: as Lightning loaded it, before it has looked at its loops' progress; changed in place.
        num_trained: batches of the round under way that have been trained on.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    if not num_trained or not {_TRAINED, _EPOCHS} <= loops.keys():
        return
    epochs = loops[_EPOCHS]
    if (
        epochs["current"]["processed"] < epochs["current"]["ready"]
        or loops[_TRAINED]["current"]["ready"] != num_trained
    ):
        return
    for count in ("current", "total"):
        under_way = epochs[count]["ready"] - 1
        epochs[count] = {**epochs[count], "processed": under_way, "completed": under_way}


def _is_due(trainer: Any, loops: dict[str, Any], num_batches: int) -> bool:
    """Tell whether validation comes after the last batch that was trained on."""
    trained, interval, every = loops[_TRAINED], trainer.val_check_interval, trainer.check_val_every_n_epoch
    if every is not None and (loops[_EPOCHS]["current"]["completed"] + 1) % every:
        return False
    if isinstance(interval, float) and interval == 1.0:
        return trained["is_last_batch"]
    step = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    return trained["total" if every is None else "current"]["ready"] % step == 0
