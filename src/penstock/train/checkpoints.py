"""Checkpoints that are whole or not there, and that load without running anybody's code.

    best_model_params.pt    a plain state_dict: the model as it was when validation was best
    a training checkpoint   model, optimizer, scheduler, loader and random states: all that going on exactly needs

Each file is written beside its place, read back, and only then takes its name, so a process killed
while saving leaves the former one. Both load with `weights_only=True`: tensors, numbers, strings,
lists and dicts, nothing that could run.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from penstock.errors import BadBlock, ConfigError, ObjectMissing
from penstock.formats.files import atomic_write, digest, store_errors
from penstock.train import random_states
from penstock.train.random_states import RandomStates
from penstock.train.restoring import Stateful, restore
from penstock.types import check_int

if TYPE_CHECKING:
    import torch

BEST_NAME = "best_model_params.pt"
FORMAT_NAME = "penstock-training-checkpoint"
FORMAT_VERSION = 1
STALE_S = 3600.0
"""Age from which a temporary file beside a checkpoint is taken for a killed process's."""

_START_OF_ZIP = b"PK\x03\x04"
_END_OF_ZIP = b"PK\x05\x06"
_END_OF_ZIP_BYTES = 22
_IS_FOLDER = 0x10


def save_best(path: str | os.PathLike[str], model: torch.nn.Module, val_loss: float | torch.Tensor) -> bool:
    """Keep the model's state_dict if its validation loss is the lowest so far, restarts included.

    The loss travels inside the file, as the comment of its zip archive, where loaders do not look: the
    file stays a plain state_dict, and weights and loss can't come apart.

    Args:
        path: the file, or a folder, which gets `best_model_params.pt`. Folders are made.
        model: the model. Wrappers of DistributedDataParallel and torch.compile are taken off.
        val_loss: lower is better; NaN is never better. Under DDP only one rank may save.

    Returns:
        Whether this was the best and has been saved.

    Raises:
        ConfigError: the file there was not written by this function, so its loss is unknown.
        StoreError: the disk is full, or may not be written.

    >>> import tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> [save_best(folder, torch.nn.Linear(2, 1), loss) for loss in (3.0, 4.0, float("nan"), 2.5)]
    [True, False, False, True]
    >>> sorted(load_checkpoint(folder))
    ['bias', 'weight']
    """
    place = _best_path(path)
    loss = float(val_loss)
    best = best_val_loss(place)
    if math.isnan(loss) or (best is not None and loss >= best):
        return False
    _save(place, _unwrapped(model).state_dict(), comment=_written_loss(loss))
    return True


def best_val_loss(path: str | os.PathLike[str]) -> float | None:
    """Give the validation loss of the model that `save_best` keeps there, or None before the first.

    Raises:
        ConfigError: the file was not written by `save_best`.
    """
    place = _best_path(path)
    if not place.exists():
        return None
    try:
        with zipfile.ZipFile(place) as archive:
            loss = float(orjson.loads(archive.comment)["val_loss"])
            if archive.comment != _written_loss(loss):
                raise ValueError("the loss differs from its checksum")
            return loss
    except (zipfile.BadZipFile, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{place} was not written by save_best, or is damaged, so nobody knows its loss: move it away, or save "
            "somewhere else"
        ) from error


def load_checkpoint(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a file of tensors with `weights_only=True`: nothing in it can run code.

    Args:
        path: the file, or a folder with `best_model_params.pt`.
        map_location: where to put the tensors, as torch.load takes it.

    Raises:
        ObjectMissing: there is no such file.
        BadBlock: it is truncated or damaged, or holds more than plain tensors.
    """
    return _load(_best_path(path), map_location)


def save_training_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: torch.nn.Module,
    optimizer: Stateful,
    loader: Stateful,
    step: int,
    scheduler: Stateful | None = None,
    **extra: Any,
) -> None:
    """Save all that a training run needs to go on exactly: states and the random generators'.

    Under DDP one rank saves and every rank loads: the loader's state has no rank in it.

    Args:
        path: the file; replaced as a whole. Its folder is made.
        model: the model. Wrappers of DistributedDataParallel and torch.compile are taken off.
        optimizer: its state is saved.
        loader: anything with state_dict and load_state_dict, such as a StreamingDataLoader.
        step: optimizer steps taken.
        scheduler: its state is saved, if given.
        **extra: what else to keep: numbers, strings, tensors, and lists and dicts of these.

    Raises:
        ConfigError: something in it could not be loaded with weights_only=True; the former file is left.
        StoreError: the disk is full, or may not be written; the former file is left.
    """
    states = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "step": check_int("step", step, minimum=0),
        "model": _unwrapped(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "loader": loader.state_dict(),
        "rng": random_states.gather(),
        "extra": extra,
    }
    _save(Path(path), states)


def load_training_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: torch.nn.Module,
    optimizer: Stateful | None = None,
    loader: Stateful | None = None,
    scheduler: Stateful | None = None,
) -> dict[str, Any]:
    """Bring a training run back to where it was saved.

    The file is read, held to its checksums and checked as a whole before anything changes: on an error model,
    optimizer, scheduler, loader and random states are as they were. Each of the four is restored if it
    is given; then the random states of Python, numpy, torch and the current CUDA device. The states saved
    are those of the rank that saved; every other rank gets streams of its own derived from them.

    Returns:
        {"step": …} and what was saved as extra.

    Raises:
        ObjectMissing: there is no such file.
        BadBlock: it is truncated or damaged, or no training checkpoint.
        StateMismatch: the loader's state belongs to other data or another order.
        ConfigError: a scheduler is given and none was saved, or the model or optimizer is another one.
    """
    states = _load(Path(path), "cpu")
    generators = _check_states(Path(path), states)
    if scheduler is not None and states["scheduler"] is None:
        raise ConfigError(f"{path} was saved without a scheduler: load it without, or save with scheduler=…")
    restore(path, states, model=_unwrapped(model), optimizer=optimizer, scheduler=scheduler, loader=loader)
    generators.restore()
    return {"step": states["step"], **states["extra"]}


def _check_states(path: Path, states: Any) -> RandomStates:
    """Raise BadBlock unless this is a whole training checkpoint; give its random states."""
    if not isinstance(states, dict) or states.get("format") != FORMAT_NAME:
        raise BadBlock(f"{path} is no training checkpoint; load a plain state_dict with load_checkpoint")
    if states.get("format_version") != FORMAT_VERSION:
        raise BadBlock(
            f"{path} has format version {states.get('format_version')!r}, this penstock reads {FORMAT_VERSION}: load "
            "it with the release that wrote it"
        )
    kinds = {"step": int, "model": dict, "optimizer": dict, "loader": dict, "rng": dict, "extra": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(states.get(name), kind)]
    if wrong or "scheduler" not in states:
        raise BadBlock(f"{path} lacks {', '.join(wrong or ['scheduler'])}: it was edited. Take an earlier checkpoint")
    try:
        return RandomStates.read(states["rng"])
    except BadBlock as error:
        raise BadBlock(f"{path} was edited: {error}. Take an earlier checkpoint") from error


def _save(place: Path, states: dict[str, Any], comment: bytes = b"") -> None:
    """Write states to a file, read it back, and let it take its name."""
    import torch

    with store_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
    with atomic_write(place) as file:
        try:
            torch.save(states, file)
        except (PicklingError, AttributeError, TypeError, ValueError, RecursionError) as error:
            raise _unsaved(place, error) from error
        if comment:
            _append_comment(file, comment)
        file.flush()
        try:
            # Mapped: this reads the structure, which is what can be wrong, and no tensor's data.
            torch.load(file.name, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise _unsaved(place, error) from error


def _unsaved(place: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{place} is not saved: it would not load with weights_only=True. Keep only numbers, strings, tensors, and "
        f"lists and dicts of these in it. torch says: {_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _append_comment(file: BinaryIO, comment: bytes) -> None:
    """Give the zip archive just written, which has no comment, one."""
    file.flush()
    with open(file.name, "rb") as written:
        written.seek(-_END_OF_ZIP_BYTES, os.SEEK_END)
        end = written.read()
    assert end.startswith(_END_OF_ZIP), "torch.save no longer ends in a plain zip record"
    assert end.endswith(b"\0\0"), "torch.save wrote a comment of its own"
    file.seek(-2, os.SEEK_END)
    file.write(len(comment).to_bytes(2, "little") + comment)


def _sweep(place: Path) -> None:
    """Remove the temporary files that processes killed while saving have left for this place."""
    for left in place.parent.glob(f".{place.name}.*.tmp"):
        if time.time() - left.stat().st_mtime > STALE_S:
            left.unlink(missing_ok=True)


def _load(place: Path, map_location: Any) -> dict[str, Any]:
    import torch

    if not place.is_file():
        raise ObjectMissing(f"{place} does not exist; there is no checkpoint to load")
    try:
        _refuse_damage(place)
        return torch.load(place, map_location=map_location, weights_only=True)
    except BadBlock:
        raise
    except Exception as error:
        raise BadBlock(
            f"{place} ({place.stat().st_size} bytes) can't be loaded: it is truncated or damaged, or holds more than "
            f"tensors and plain values. Take an earlier checkpoint. torch says: {_first_line(error)}"
        ) from error


def _refuse_damage(place: Path) -> None:
    """Compare the members of a zip archive with their checksums, a piece at a time: torch.load does not.

    Raises:
        BadBlock: one differs; the message names it.
        zipfile.BadZipFile: the archive's directory is damaged, or another of zipfile's errors.
    """
    with open(place, "rb") as file:
        # Other kinds of file have no checksums; torch knows them by their first bytes too.
        if file.read(len(_START_OF_ZIP)) != _START_OF_ZIP:
            return
        with zipfile.ZipFile(file) as archive:
            lying = [each.filename for each in archive.infolist() if _contradicts_itself(each)]
            damaged = next(iter(lying), None) or archive.testzip()
    if damaged is not None:
        raise BadBlock(
            f"{place} is damaged: its member {damaged} differs from its checksum. Take an earlier "
            "checkpoint, or another copy of the file"
        )


def _contradicts_itself(member: zipfile.ZipInfo) -> bool:
    """Tell whether zipfile and torch would read a member differently, which is then never as it was written."""
    # Members are stored as they are; one marked as a folder gives torch no bytes, and so a tensor of whatever.
    return member.file_size != member.compress_size or bool(member.external_attr & _IS_FOLDER)


def _best_path(path: str | os.PathLike[str]) -> Path:
    place = Path(path)
    is_file = place.is_file() or (place.suffix in (".pt", ".pth", ".ckpt") and not place.is_dir())
    return place if is_file else place / BEST_NAME


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Take off DistributedDataParallel and torch.compile, whose prefixes would bind the file to them."""
    from torch.nn.parallel import DistributedDataParallel

    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif (inner := getattr(model, "_orig_mod", None)) is not None:
            model = inner
        else:
            return model


def _written_loss(loss: float) -> bytes:
    """Write a loss with a checksum: the archive's own are of its members only."""
    # Infinities as text, which float() reads: JSON has none.
    value = loss if math.isfinite(loss) else str(loss)
    return orjson.dumps({"val_loss": value, "digest": digest(orjson.dumps(value))})
