"""A checkpoint written after a batch and before the validation that was to follow it: have it follow.

batch ── on_train_batch_end ──┃ checkpoint ── validation ── …
                              ▼
resume: Lightning goes on as if there had been that validation, and a round stays without one. Told that it was
        under way, Lightning does it, from its start.
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


def _is_due(trainer: Any, loops: dict[str, Any], num_batches: int) -> bool:
    """Tell whether validation comes after the last batch that was trained on."""
    trained, interval, every = loops[_TRAINED], trainer.val_check_interval, trainer.check_val_every_n_epoch
    if every is not None and (loops[_EPOCHS]["current"]["completed"] + 1) % every:
        return False
    if isinstance(interval, float) and interval == 1.0:
        return trained["is_last_batch"]
    step = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    return trained["total" if every is None else "current"]["ready"] % step == 0
