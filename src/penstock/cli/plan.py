"""`penstock plan`: who will read what at which step, without reading it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.inspect import JsonOption, print_json

if TYPE_CHECKING:
    import numpy as np

    from penstock.datasets.tokens import TokenDataset
    from penstock.plan.plan import Plan

_SHOWN = 3
"""Windows of a row that a person is shown, and the last one."""


def plan(
    path: Annotated[Path, typer.Argument(help="A token bin, or the folder of a train.bin.")],
    batch: Annotated[int, typer.Option(help="Windows per batch of one rank.")],
    seq_len: Annotated[int, typer.Option(help="Tokens per window.")] = 1024,
    world: Annotated[int, typer.Option(help="Data-parallel ranks.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps to show.")] = 2,
    step: Annotated[int, typer.Option(min=0, help="First step to show, from 0.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Epoch, from 0.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the loader.")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle", metavar="", help="As the loader's shuffle=True.")] = False,
    drop_last: Annotated[bool, typer.Option("--drop-last", metavar="", help="As the loader's.")] = False,
    stride: Annotated[int | None, typer.Option(help="Tokens from window to window; default: seq-len.")] = None,
    dtype: Annotated[str | None, typer.Option(help="uint16 or uint32, for a bare token file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which rank reads which windows at which step; no data is read for it."""
    from penstock.datasets.tokens import TokenDataset
    from penstock.errors import ConfigError
    from penstock.loader.settings import build_order, check_remainder
    from penstock.plan.plan import Plan
    from penstock.types import check_int

    check_int("--world", world, minimum=1)
    check_int("--batch", batch, minimum=1)
    if (path / "train.bin").is_file():
        path = path / "train.bin"
    dataset = TokenDataset(path, seq_len, stride=stride, dtype=dtype)
    order = build_order(dataset, shuffle, seed, 1, None)
    planned = Plan(order=order, global_batch=batch * world, remainder=check_remainder(drop_last, None))
    if step and step >= planned.num_batches():
        raise ConfigError(
            f"--step {step} is past the end: an epoch has {planned.num_batches():,} steps, the first is 0"
        )
    facts = {
        "path": str(path),
        "windows": len(dataset),
        "seq_len": seq_len,
        "global_batch": planned.global_batch,
        "batches_per_epoch": planned.num_batches(),
        "order": order.name,
        "seed": seed,
        "epoch": epoch,
        "rows": _rows(planned, dataset, world, epoch, range(step, min(step + steps, planned.num_batches()))),
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _rows(planned: Plan, dataset: TokenDataset, world: int, epoch: int, steps: range) -> list[dict[str, Any]]:
    """Say for each step and rank which windows it reads, and where they lie in the file."""
    from penstock.plan.plan import Cursor
    from penstock.types import World

    rows = []
    for step in steps:
        cursor = Cursor(epoch=epoch, samples=step * planned.global_batch)
        for rank in range(world):
            share = planned.share(cursor, World(dp_rank=rank, dp_size=world))
            assert share is not None
            rows.append({"step": step, "rank": rank, "repeats": share.repeats, **_places(dataset, share.ids[0])})
    return rows


def _places(dataset: TokenDataset, ids: np.ndarray) -> dict[str, Any]:
    """Give windows and the half-open ranges of tokens and bytes they are read from."""
    import numpy as np

    # The last window is moved back to the end of the stream.
    starts = np.minimum(ids * dataset.stride, len(dataset.bin) - dataset.seq_len - 1)
    ranges = np.stack([starts, starts + dataset.seq_len + 1], axis=1)  # [b, 2]
    return {
        "windows": ids.tolist(),
        "tokens": ranges.tolist(),
        "bytes": (ranges * dataset.bin.dtype.itemsize).tolist(),
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{facts['windows']:,} windows of {facts['seq_len']:,} tokens in {facts['path']}\n"
        f"{facts['batches_per_epoch']:,} global batches of {facts['global_batch']:,} an epoch; order {facts['order']}, "
        f"seed {facts['seed']}, epoch {facts['epoch']}",
        markup=False,
        soft_wrap=True,
    )
    table = Table("step", "rank", "windows", "tokens of the first", "bytes of the first", box=SIMPLE, pad_edge=False)
    last = None
    for row in facts["rows"]:
        if last is not None and row["step"] != last:
            table.add_section()
        last = row["step"]
        places = (_range(row[name][0]) for name in ("tokens", "bytes"))
        table.add_row(f"{row['step']:,}", str(row["rank"]), _listed(row), *places)
    console.print(table)
    console.print("--json lists all windows with their places", style="dim")


def _listed(row: dict[str, Any]) -> str:
    """Name the first windows of a row and the last one, and say how many there are."""
    names = [f"{number:,}" for number in row["windows"]]
    count = f" ({len(names):,})" if len(names) > _SHOWN + 1 else ""
    shown = names if not count else [*names[:_SHOWN], f"… {names[-1]}"]
    note = f", {row['repeats']} of them again, to keep ranks in step" if row["repeats"] else ""
    return "  ".join(shown) + count + note


def _range(place: list[int]) -> str:
    return f"{place[0]:,}–{place[1]:,}"
