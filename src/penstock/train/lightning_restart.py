"""What a checkpoint says of Lightning's own progress, where resuming from it would lose or repeat something.

    written                                            Lightning alone                   with what is changed here
    after a batch, before the validation due then      has no such validation            validates
    within a validation                                has no such validation            validates
    where `max_steps` ended an epoch within a round    begins another epoch              goes on with the epoch
    at an epoch's end, resumed with `max_steps`        may train a batch in that epoch   begins the next one

The loaders' states are right in all of these; this is about counters that Lightning keeps beside them.
"""

from __future__ import annotations

from typing import Any

_TRAINED = "epoch_loop.batch_progress"
_VALIDATED = "epoch_loop.val_loop.batch_progress"
_EPOCHS = "epoch_progress"


def mend_progress(trainer: Any, checkpoint: dict[str, Any], state: dict[str, Any], *, is_validating: bool) -> None:
    """Have Lightning resume where the loaders stand.

    Args:
        trainer: the Lightning Trainer that resumes.
        checkpoint: as Lightning loaded it, before it has looked at its loops' progress; changed in place.
        state: of the first training loader.
        is_validating: it was written within a validation.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    if not {_TRAINED, _VALIDATED, _EPOCHS} <= loops.keys():
        return
    epochs, trained = loops[_EPOCHS]["current"], loops[_TRAINED]["current"]
    if epochs["processed"] < epochs["ready"]:
        is_in_hook = trained["ready"] == trained["processed"] == trained["completed"] + 1
        if is_validating or (is_in_hook and _is_due(trainer, loops, state["round_batches"])):
            _expect_validation(loops)
    elif state["batch"] and state["batch"] == trained["ready"]:
        _reopen_epoch(loops)
    elif not state["batch"]:
        _close_epoch(loops)


def loader_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Give the states of loaders of ours that Lightning saved by itself; None: there are none."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    saved = loops.get("state_dict", {}).get("combined_loader", [])
    return [state for state in saved if {"version", "order", "samples"} <= state.keys()] or None


def _expect_validation(loops: dict[str, Any]) -> None:
    """Say that the batch is done with, and the validation after it under way, at its start."""
    trained = loops[_TRAINED]
    loops[_TRAINED] = trained | {
        count: {**trained[count], "completed": trained[count]["processed"]} for count in ("current", "total")
    }
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    loops[_VALIDATED] = {**loops[_VALIDATED], "total": begun, "current": dict(begun), "is_last_batch": False}


def _reopen_epoch(loops: dict[str, Any]) -> None:
    """Say that the epoch is under way."""
    epochs = loops[_EPOCHS]
    for count in ("current", "total"):
        under_way = epochs[count]["ready"] - 1
        epochs[count] = {**epochs[count], "processed": under_way, "completed": under_way}


def _close_epoch(loops: dict[str, Any]) -> None:
    """Say that the epoch is complete, and no batch of the next one begun."""
    epochs, trained = loops[_EPOCHS], loops[_TRAINED]
    for count in ("current", "total"):
        epochs[count] = {**epochs[count], "completed": epochs[count]["processed"]}
    loops[_TRAINED] = {**trained, "current": dict.fromkeys(trained["current"], 0), "is_last_batch": False}


def _is_due(trainer: Any, loops: dict[str, Any], num_batches: int) -> bool:
    """Tell whether validation comes after the last batch that was trained on."""
    trained, interval = loops[_TRAINED], trainer.val_check_interval
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not every or (loops[_EPOCHS]["current"]["completed"] + 1) % every:
        return False
    if isinstance(interval, float) and interval == 1.0:
        return bool(trained["is_last_batch"])
    step = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    return bool(trained["current"]["ready"] % step == 0)
