"""What the demo says at its end: the same facts as a table for people and as JSON for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from penstock.demo.bins import Bins
from penstock.demo.check import Verdict
from penstock.demo.settings import DemoSettings, steps_of
from penstock.demo.train import NUM_EVALUATION_BATCHES

JsonDict = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What was measured, and found out after training."""

    settings: DemoSettings
    made: Bins
    logs: Sequence[Sequence[JsonDict]]
    """Records of the process that was killed and of the one that went on."""
    steps_per_epoch: int
    num_parameters: int
    data_tokens_per_s: float
    verdict: Verdict
    best_val_loss: float | None
    sample: str
    files: dict[str, str]
    """Name → path of what the demo leaves."""


def build_report(facts: Facts) -> JsonDict:
    """Put the facts in order, as JSON values."""
    settings, (killed, resumed) = facts.settings, facts.logs
    processes = [_process(log) for log in (killed, resumed)]
    first, last = steps_of(killed), steps_of(resumed)
    elapsed = sum(process["seconds"] for process in processes)
    waited = sum(process["wait_s"] for process in processes)
    final = resumed[-1]["val_loss"]
    bits = final / math.log(2) / facts.made.bytes_per_token
    verdict = facts.verdict
    return {
        "corpus": facts.made.describe(),
        "model": {**settings.model, "parameters": facts.num_parameters},
        "data": {"tokens_per_s": round(facts.data_tokens_per_s)},
        "training": {
            "steps": settings.steps,
            "tokens": settings.steps * settings.tokens_per_step,
            "epochs": round(settings.steps / facts.steps_per_epoch, 2),
            "seconds": round(elapsed, 2),
            "threads": settings.num_threads,
            "tokens_per_s": round(sum(map(len, (first, last))) * settings.tokens_per_step / elapsed),
            "wait_share": waited / elapsed,
            "first_loss": first[0]["loss"],
            "last_loss": sum(record["loss"] for record in last[-20:]) / len(last[-20:]),
            "validation_loss": final,
            "validation_loss_at_checkpoints": {
                "best": facts.best_val_loss,
                "measured_on": f"the same {NUM_EVALUATION_BATCHES} batches of the validation split each time, "
                "at most; validation_loss is of all of it",
            },
            "bits_per_byte": bits,
        },
        "interruption": {
            "killed_at_step": first[-1]["step"],
            "killed_in_epoch_at": round(first[-1]["step"] / facts.steps_per_epoch % 1, 3),
            "resumed_from_step": last[0]["step"] - 1,
            "steps_taken_again": first[-1]["step"] - last[0]["step"] + 1,
            "processes": processes,
        },
        "identical_batches": {
            "identical": verdict.identical,
            "steps": verdict.num_steps,
            "compared": verdict.num_compared,
            "running_hash": verdict.hash,
            "problem": verdict.problem,
        },
        "sample": facts.sample,
        "files": facts.files,
    }


def _process(log: Sequence[JsonDict]) -> JsonDict:
    steps = steps_of(log)
    seconds, wait_s = steps[-1]["elapsed_s"], steps[-1]["wait_s"]
    return {
        "num_workers": log[0]["num_workers"],
        "lane": log[0]["lane"],
        "first_step": steps[0]["step"],
        "last_step": steps[-1]["step"],
        "seconds": seconds,
        "wait_s": wait_s,
        "wait_share": wait_s / seconds if seconds else 0.0,
    }


def print_report(report: JsonDict, console: Console) -> None:
    """Show a report to a person."""
    table = Table(title="What happened", title_justify="left", show_header=False, pad_edge=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, words in _rows(report).items():
        table.add_row(name, words)
    console.print()
    console.print(table)
    console.print(Panel(escape(report["sample"].strip()), title="The model writes", title_align="left"))
    for name, path in report["files"].items():
        console.print(f"{name:<20}  {path}", markup=False, highlight=False, soft_wrap=True)


def _rows(report: JsonDict) -> dict[str, str]:
    corpus, model, training = report["corpus"], report["model"], report["training"]
    return {
        "corpus": f"{corpus['documents']:,} documents, {escape(corpus['source'])}",
        "tokens": f"{corpus['train_tokens']:,} for training, {corpus['validation_tokens']:,} for validation, of "
        f"{corpus['bytes_per_token']:.2f} bytes; vocabulary {corpus['vocab_size']:,}",
        "model": f"{model['parameters'] / 1e6:.2f} M parameters, {model['num_layers']} blocks of width {model['dim']}",
        "data alone": f"{report['data']['tokens_per_s']:,} tokens/s",
        "training": f"{training['tokens_per_s']:,} tokens/s: {training['steps']:,} steps, {training['epochs']} epochs, "
        f"{training['seconds']:.0f} s",
        "waiting for data": f"{training['wait_share']:.2%} of the training time, starting workers included",
        **_interruption_rows(report),
        "loss": f"{training['first_loss']:.2f} at the first step, {training['last_loss']:.2f} at the last ones; "
        f"validation {training['validation_loss']:.2f} on the whole split, that is {training['bits_per_byte']:.2f} "
        f"bits a byte; {_best(training['validation_loss_at_checkpoints']['best'])}",
    }


def _best(loss: float | None) -> str:
    if loss is None:
        return "no checkpoint has a loss"
    return f"the best checkpoint had {loss:.2f} on the part of it that checkpoints are compared by"


def _interruption_rows(report: JsonDict) -> dict[str, str]:
    cut, proof = report["interruption"], report["identical_batches"]
    before, after = (_workers(process) for process in cut["processes"])
    verdict = (
        f"[green]yes[/green]: {proof['compared']:,} running hashes, of {proof['steps']:,} steps, equal those of an "
        f"uninterrupted pass; the last is {proof['running_hash'][:12]}…"
        if proof["identical"]
        else f"[red]NO[/red]: {escape(proof['problem'])}"
    )
    return {
        "interrupted": f"kill -9 at step {cut['killed_at_step']:,}, {cut['killed_in_epoch_at']:.0%} into an epoch; "
        f"batches were made {before}",
        "resumed": f"by a new process from step {cut['resumed_from_step']:,}; batches were made {after}; "
        f"{cut['steps_taken_again']} steps taken again",
        "identical batches": verdict,
    }


def _workers(process: JsonDict) -> str:
    lanes = {"inline": "in the training thread", "thread": "by {} threads", "process": "by {} worker processes"}
    return lanes[process["lane"]].format(process["num_workers"])
