"""The process lane: the worker's side.

A worker takes tickets from its socket, makes them, and sends parcels back. It ends when the socket
does, when its parent is gone, and not on Ctrl-C: that is the trainer's to answer.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from penstock.errors import ConfigError
from penstock.loader.hints import Hints
from penstock.loader.recipe import Recipe
from penstock.loader.sharing import Parcel, SlabWriter, Wire
from penstock.plan.plan import Cursor, Share

WATCH_EVERY_S = 1.0
HINT = -1
"""In the place of a ticket's number: what follows are cursors of steps that this worker will be given."""

ShareAt = Callable[[Cursor], Share | None]
"""From a cursor to the ids of the one step there: what a worker makes of a ticket."""


class NotGuarded(ConfigError):
    """The trainer's script starts workers when it is imported."""


def main() -> None:
    """Run a worker in this process; its descriptors are the first argument."""
    connection, payload = (int(fd) for fd in sys.argv[1].split(","))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    wire = Wire(socket.socket(fileno=connection))
    try:
        try:
            recipe, share_at = _load(payload)
        except NotGuarded as error:
            # Where in the script, the trainer's own traceback says; more of it would only bury the one line that helps.
            wire.send((-1, "not guarded", str(error)))
            return
        except BaseException:  # noqa: BLE001 - whatever it was, the trainer must hear of it
            wire.send((-1, "broken", traceback.format_exc()))
            return
        _serve(wire, recipe, share_at)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        # Without tearing modules down: torch alone would take half a second of the trainer's close().
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _load(payload: int) -> tuple[Recipe, ShareAt]:
    """Read the job, importing the trainer's script first if something in it was defined there."""
    # Mapped, not read: all workers share one file offset.
    with mmap.mmap(payload, 0, access=mmap.ACCESS_READ) as pages:
        preparation, job = pickle.loads(pages)  # noqa: S301 - written by our parent
    os.close(payload)
    if preparation is not None:
        _import_script(preparation)
    loaded = pickle.loads(job)  # noqa: S301
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    # All that was imported stays for as long as the worker does: the collector need not look at it, 0.1 s each time.
    gc.freeze()
    return loaded


def _import_script(preparation: dict[str, Any]) -> None:
    """Import the trainer's main module as multiprocessing does, so that its names unpickle."""
    from multiprocessing import process, spawn

    # While this is set, a script that is not guarded is told so instead of starting workers of its own.
    current: Any = process.current_process()
    current._inheriting = True
    try:
        spawn.prepare(preparation)
    finally:
        del current._inheriting


def _serve(wire: Wire, recipe: Recipe, share_at: ShareAt) -> None:
    """Make tickets until the connection ends."""
    slabs = SlabWriter()
    leases: dict[int, Any] = {}
    hints: Hints | None = None
    while True:
        (number, cursor, released, over), _ = wire.receive()
        slabs.take_back(released)
        for done in over:
            leases.pop(done, None)
        if number == HINT and not cursor:
            continue
        if number == HINT:
            hints = hints or Hints(recipe.dataset)
            hints([share for one in cursor if (share := share_at(one)) is not None])
            continue
        try:
            parcel, fds, lease = _packed(slabs, recipe, share_at(cursor))
            kind = "leased" if lease else "made"
            if lease:
                # The trainer's batch may name files that only this process keeps in place.
                leases[number] = lease
        except BaseException as error:  # noqa: BLE001 - it travels with its ticket and is raised in the trainer
            kind = "failed"
            error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)).rstrip())
            parcel, fds = slabs.pack((_portable(error), _portable(error.__cause__)))
        wire.send((number, kind, parcel), fds)
        for fd in fds:
            os.close(fd)


def _packed(slabs: SlabWriter, recipe: Recipe, share: Share | None) -> tuple[Parcel, tuple[int, ...], Any]:
    """Make the batch of a share's one step and pack it; give with it what keeps its files in place."""
    assert share is not None
    made = recipe.make(share.epochs(0), share.ids[0])
    lease, made.leases = made.leases, ()
    try:
        return *slabs.pack(made), lease
    except Exception as error:
        raise ConfigError(
            f"the batch of samples {share.ids[0].tolist()} of {type(recipe.dataset).__name__} cannot be sent from a "
            f"worker process ({type(error).__name__}: {error}): make it of types that can be pickled, or use "
            "worker_type='thread'"
        ) from error


def _portable(error: BaseException | None) -> BaseException | None:
    """Make an error fit to travel; many exception classes cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001 - whatever a class's pickling raises, its words are what matters
        replacement = RuntimeError(f"{type(error).__name__}: {error}")
        replacement.__notes__ = getattr(error, "__notes__", [])
        return replacement
    return error


def _watch_parent(parent: int) -> None:
    """End at once if the parent is gone, even from the middle of somebody's code."""
    while os.getppid() == parent:
        time.sleep(WATCH_EVERY_S)
    os._exit(1)
