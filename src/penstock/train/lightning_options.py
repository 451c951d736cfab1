"""What becomes of a Trainer's options where training goes by rounds: they work as meant, or are refused.

One epoch of Lightning's is one round. So whatever counts epochs counts rounds, and an option that would end
one elsewhere, or repeat it, has no meaning left. The guide "rounds with Lightning" lists all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import ConfigError


def check_options(trainer: Any) -> None:
    """Refuse what cannot work whatever the rounds are.

    Args:
        trainer: a Lightning Trainer, before it has asked for loaders.

    Raises:
        ConfigError: names the option and what to do instead.
    """
    if trainer.overfit_batches:
        raise ConfigError(
            f"overfit_batches={trainer.overfit_batches} repeats the same batches every epoch, and rounds go on: give a "
            "dataset of just those samples (torch.utils.data.Subset), or no chunk size"
        )
    if getattr(trainer, "val_check_interval", None) is None:
        raise ConfigError(
            "val_check_interval is a time, and with rounds validation comes after each: leave it out, or give it a "
            "number of batches"
        )


def lift_limits(trainer: Any) -> str | None:
    """Lift the limits that rounds override, all but 1.0, which is none; say which, if there are any."""
    if trainer.fast_dev_run:
        return None
    limits = {name: getattr(trainer, name) for name in ("limit_train_batches", "limit_val_batches")}
    limits = {name: limit for name, limit in limits.items() if not (limit == 1 and isinstance(limit, float))}
    for name in limits:
        setattr(trainer, name, 1.0)
    given = ", ".join(f"{name}={limit}" for name, limit in limits.items())
    return f"{given}: ignored, because rounds go over the whole of both partitions; leave it out" if limits else None


def metrics_to_report(names: Sequence[str], logged: Mapping[str, Any]) -> dict[str, float]:
    """Give the metrics that a policy is told.

    Raises:
        ConfigError: the module logs no such metric.
    """
    if missing := [name for name in names if name not in logged]:
        raise ConfigError(f"report={list(names)}: the module logs no {missing}, only {sorted(logged)}")
    return {name: float(logged[name]) for name in names}


def rounds_between_validations(trainer: Any, num_batches: int, *, adapts: bool) -> int:
    """Check the options that depend on how long a round is; say after how many rounds validation comes.

    Args:
        trainer: a Lightning Trainer that is about to train.
        num_batches: batches in a round.
        adapts: a policy decides that anew for each round.

    Raises:
        ConfigError: names the option and what to do instead.
    """
    reloads = trainer.reload_dataloaders_every_n_epochs
    if adapts and reloads != 1:
        raise ConfigError(
            f"rounds whose length a policy decides need Trainer(reload_dataloaders_every_n_epochs=1), got {reloads}: "
            "Lightning asks for a loader's length only when it loads it"
        )
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if trainer.fast_dev_run or not trainer.enable_validation:
        return 1
    if every is None:
        raise ConfigError(
            "check_val_every_n_epoch=None counts batches whatever rounds they are of: leave it out to validate after "
            "each round, or give it the number of rounds from one validation to the next"
        )
    if interval == 1.0 and isinstance(interval, float):
        return int(every)
    if adapts:
        raise ConfigError(
            f"val_check_interval={interval} is a place in a round, and a policy decides how long rounds are: leave it "
            "out; validation comes after each round, or every check_val_every_n_epoch rounds"
        )
    step = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    if num_batches % step:
        raise ConfigError(
            f"val_check_interval={interval} validates every {step} batches, which misses the end of a round of "
            f"{num_batches}: leave it out to validate after each round, or give it a divisor of {num_batches}; for "
            "less than once a round there is check_val_every_n_epoch"
        )
    return int(every)


def uneven_accumulation(trainer: Any, num_batches: int, *, adapts: bool) -> str | None:
    """Tell what happens to gradients at the end of a round, if their accumulation does not end there by itself."""
    steps = trainer.accumulate_grad_batches
    if adapts or num_batches % steps == 0:
        return None
    return (
        f"accumulate_grad_batches={steps} does not divide a round of {num_batches} batches: Lightning steps at the end "
        f"of each round, so its last step is of {num_batches % steps} batches only"
    )
