"""What a checkpoint says of Lightning's own progress, where resuming from it would lose or repeat something.

    written                                            Lightning alone                   with what is changed here
    after a batch, before the validation due then      has no such validation            validates
    within a validation, or as it begins               has no such validation            validates
    where `max_steps` ended an epoch within a round    begins another epoch              goes on with the epoch
    at an epoch's end, resumed with `max_steps`        may train a batch in that epoch   begins the next one
    after a round's last batch, no validation due      may train a batch in that epoch   begins the next one
    as an epoch begins, before its first batch         has no such epoch                 begins it

The loaders' states are right in all of these; this is about counters that Lightning keeps beside them.
"""

from __future__ import annotations

from typing import Any

_TRAINED = "epoch_loop.batch_progress"
_VALIDATED = "epoch_loop.val_loop.batch_progress"
_EPOCHS = "epoch_progress"


def mend_progress(
    trainer: Any, checkpoint: dict[str, Any], states: list[dict[str, Any]], *, is_validating: bool
) -> bool:
    """Have Lightning resume where the loaders stand.

    Args:
        trainer: the Lightning Trainer that resumes.
        checkpoint: as Lightning loaded it, before it has looked at its loops' progress; changed in place.
        states: of the training loaders.
        is_validating: it was written within a validation.

    Returns:
        Whether the epoch under way has had its last batch, and the loaders stand in the round after it.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    if not {_TRAINED, _VALIDATED, _EPOCHS} <= loops.keys():
        return False
    state = next((state for state in states if "round" in state), states[0])
    at_start = not state.get("batch")
    epochs, trained = loops[_EPOCHS]["current"], loops[_TRAINED]["current"]
    if epochs["processed"] == epochs["ready"]:
        if at_start:
            _close_epoch(loops, epochs["processed"])
        elif state["batch"] == trained["ready"]:
            _reopen_epoch(loops)
        return False
    if epochs["started"] < epochs["ready"]:
        _close_epoch(loops, epochs["processed"])
        return False
    if trained["ready"] > trained["processed"] or not trained["ready"]:
        return False
    is_over = at_start and loops[_TRAINED]["is_last_batch"]
    if is_validating:
        _expect_validation(loops)
    elif _is_due(trainer, loops, state.get("round_batches")):
        if trained["completed"] < trained["processed"]:
            _expect_validation(loops)
    elif is_over:
        _close_epoch(loops, epochs["ready"])
        return False
    return bool(is_over)


def finish_epoch(trainer: Any) -> tuple[Any, Any]:
    """Have a Trainer expect as many batches as the epoch had that it resumes at the end of.

    Returns:
        What it had counted for the next one: `max_batches` of its loop, and its `val_check_batch`.
    """
    fit_loop, interval = trainer.fit_loop, trainer.val_check_interval
    counted = fit_loop.max_batches, trainer.val_check_batch
    fit_loop.max_batches = fit_loop.epoch_loop.batch_progress.current.processed
    if isinstance(interval, float):
        trainer.val_check_batch = max(1, int(fit_loop.max_batches * interval))
    return counted


def take_loader_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the states of loaders of ours that Lightning saved by itself, and leave none for it to load.

    It would load them after it has counted, and they may be one batch too far. Where there are other loaders with
    states beside ours, all stay, and ours are loaded again once Lightning is done.
    """
    state = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
    saved = state.get("combined_loader", [])
    ours = [each for each in saved if {"version", "order", "samples"} <= each.keys()]
    if len(ours) == len(saved):
        state.pop("combined_loader", None)
    return ours


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


def _close_epoch(loops: dict[str, Any], complete: int) -> None:
    """Say that so many epochs are complete, and no batch of the next one begun."""
    epochs, trained = loops[_EPOCHS], loops[_TRAINED]
    earlier = epochs["total"]["ready"] - epochs["current"]["ready"]
    for count, number in (("current", complete), ("total", earlier + complete)):
        epochs[count] = dict.fromkeys(epochs[count], number)
    total = {**trained["total"], "completed": trained["total"]["processed"]}
    current = dict.fromkeys(trained["current"], 0)
    loops[_TRAINED] = {**trained, "total": total, "current": current, "is_last_batch": False}


def _is_due(trainer: Any, loops: dict[str, Any], num_batches: Any) -> bool:
    """Tell whether validation comes after the last batch that was trained on."""
    trained, interval = loops[_TRAINED], trainer.val_check_interval
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not every or (loops[_EPOCHS]["current"]["completed"] + 1) % every:
        return False
    if isinstance(interval, float) and interval == 1.0:
        return bool(trained["is_last_batch"])
    step = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    return bool(trained["current"]["ready"] % step == 0)
