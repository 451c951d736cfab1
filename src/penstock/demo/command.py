"""`penstock demo`: real text becomes a trained model, interrupted and resumed, in about two minutes.

    corpus ─▶ tokenizer ─▶ bins ─▶ train ─╳ kill -9 ─▶ resume ─▶ compare with an uninterrupted pass ─▶ report

Each arrow is a function of the package that users call themselves; `examples/train_gpt.py` is the
training part alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.demo.bins import Bins
    from penstock.demo.settings import DemoSettings

MARKER = ".penstock-demo"
REPORT, PLOT = "report.json", "loss.png"
KILL_AT = 0.45
"""Part of the training after which the first process is killed."""
MIN_STEPS = 40
SAMPLE_TOKENS = 160
PROMPT = "Return the"
"""What the sample goes on from, where the corpus is Python's documentation."""


def demo(
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Text of your own: .txt, .jsonl, .json or .parquet, or a folder. Default: Python's own manual."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A dataset to download instead, as hf://roneneldan/TinyStories, or the URL of a file."),
    ] = None,
    max_samples: Annotated[
        int, typer.Option(min=100, help="How much of the dataset to take: its first so many samples.")
    ] = 20_000,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A tokenizer: a path, a Hub name or bytes. Default: one is learned from the corpus."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for all results; an earlier demo's there is replaced.")] = Path(
        "runs/demo"
    ),
    seconds: Annotated[float, typer.Option(min=1, help="How long to train, about.")] = 90.0,
    steps: Annotated[int | None, typer.Option(min=MIN_STEPS, help="Train so many steps, whatever they take.")] = None,
    text_field: Annotated[str, typer.Option(help="Field of the text in JSON records and tables.")] = "text",
) -> None:
    """Train a small GPT from raw text on the CPU, kill it in mid-epoch, resume it, and prove nothing was lost."""
    from rich.console import Console

    from penstock.demo.bins import make_bins
    from penstock.demo.dataset import fetch_dataset
    from penstock.demo.report import print_report
    from penstock.errors import ConfigError
    from penstock.formats.files import lock_folder, write_json
    from penstock.transforms.tokenizer import Tokenizer

    # Read by torch when it is first imported, here and in the training processes. Threads that spin while they wait
    # for each other make a step ten times slower as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = Console()
    if corpus is not None and dataset is not None:
        raise ConfigError("give --corpus, which is on this disk, or --dataset, which is downloaded, not both")
    opened = None if tokenizer is None else Tokenizer.from_pretrained(tokenizer)  # before anything is downloaded
    _claim(out)
    with lock_folder(out):
        _clear(out)
        source: Path | Mapping[str, Path] | None = corpus
        if dataset is not None:
            _say(console, "0", "download", f"the first {max_samples:,} samples of {dataset}")
            source, text_field = fetch_dataset(out, dataset, max_samples, text_field)
        name = dataset or str(corpus or "the documentation of Python itself")
        made = make_bins(out, source, opened, text_field, name=name, say=lambda *words: _say(console, *words))
        settings = _fit(out, made.tokenizer.vocab_size, seconds, steps)
        _train(out, settings, console)
        report = _find_out(out, settings, made, console)
        write_json(out / REPORT, report)
    print_report(report, console)
    if not report["identical_batches"]["identical"]:
        raise typer.Exit(1)


def _claim(out: Path) -> None:
    """Make the folder, or take over an earlier demo's; any other folder is refused.

    Raises:
        ConfigError: there is something in it that is no demo's.
    """
    from penstock.errors import ConfigError
    from penstock.formats.files import store_errors

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder for the demo's results")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists():
        raise ConfigError(f"--out {out} holds files that are no demo's; name a new folder, or empty this one yourself")
    with store_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).touch()


def _clear(out: Path) -> None:
    """Remove what an earlier demo has made in its folder, and nothing else."""
    from penstock.demo.bins import CORPUS, TOKENIZER
    from penstock.demo.dataset import BLOCKS
    from penstock.demo.runs import errors_path
    from penstock.demo.settings import BINS, CHECKPOINT, SETTINGS, log_path
    from penstock.train.checkpoints import BEST_NAME

    for folder in (BINS, BLOCKS):
        shutil.rmtree(out / folder, ignore_errors=True)
    logs = [path(out, run) for path in (log_path, errors_path) for run in (1, 2)]
    names = (CORPUS, TOKENIZER, SETTINGS, CHECKPOINT, BEST_NAME, REPORT, PLOT)
    for path in (*logs, *(out / name for name in names)):
        path.unlink(missing_ok=True)


def _fit(out: Path, vocab_size: int, seconds: float, steps: int | None) -> DemoSettings:
    """Choose the settings of the training run, and check that the bins are long enough for it."""
    from penstock.datasets.tokens import TokenDataset
    from penstock.demo.runs import choose_steps
    from penstock.demo.settings import BINS, DemoSettings
    from penstock.demo.train import open_train_loader

    settings = DemoSettings(steps=steps or MIN_STEPS, num_threads=1, vocab_size=vocab_size)
    TokenDataset(out / BINS / "validation.bin", settings.seq_len)
    open_train_loader(out, settings).close()
    settings = choose_steps(settings, seconds if steps is None else 0)
    settings.write(out)
    return settings


def _train(out: Path, settings: DemoSettings, console: Console) -> None:
    """Train in a process that is killed on the way, and in another that goes on."""
    from penstock.demo.runs import Attempt, train_in_process
    from penstock.demo.settings import read_log, steps_of
    from penstock.demo.train import open_train_loader

    with open_train_loader(out, settings) as loader:
        kill_at = _kill_step(settings, len(loader))
    threads = "one thread" if settings.num_threads == 1 else f"{settings.num_threads} threads"
    _say(console, "4", "train", f"{settings.steps:,} steps on {threads}; batches are made in the training thread")
    train_in_process(out, settings, Attempt(run=1, num_workers=0, worker_type="thread", kill_at=kill_at))
    killed = steps_of(read_log(out, 1))[-1]["step"]
    _say(console, "5", "kill -9", f"at step {killed:,}; a new process resumes, batches are made by 2 worker processes")
    train_in_process(out, settings, Attempt(run=2, num_workers=2, worker_type="process"))


def _kill_step(settings: DemoSettings, steps_per_epoch: int) -> int:
    """Choose a step half-way between two checkpoints and not at the end of an epoch."""
    every = settings.evaluate_every
    step = max(1, round(KILL_AT * settings.steps / every)) * every + every // 2
    return step + 1 if step % steps_per_epoch == 0 else step


def _find_out(out: Path, settings: DemoSettings, made: Bins, console: Console) -> dict[str, Any]:
    """Compare, measure, write a sample and draw: all that the report says."""
    from penstock.demo.check import compare, time_data_alone, uninterrupted_hashes
    from penstock.demo.report import Facts, build_report
    from penstock.demo.settings import BINS, CHECKPOINT, read_log
    from penstock.demo.train import open_train_loader
    from penstock.train.checkpoints import BEST_NAME, best_val_loss

    _say(console, "6", "compare", "every batch of the interrupted run with an uninterrupted pass")
    logs = [read_log(out, run) for run in (1, 2)]
    verdict = compare(uninterrupted_hashes(out, settings), logs)
    num_parameters, sample = _sample(out, settings, made)
    has_plot = _draw(out, settings.vocab_size, logs, console)
    with open_train_loader(out, settings) as loader:
        steps_per_epoch = len(loader)
    files = {
        "best model": BEST_NAME,
        "training checkpoint": CHECKPOINT,
        **({"loss plot": PLOT} if has_plot else {}),
        "bins": BINS,
        "report": REPORT,
    }
    facts = Facts(
        settings=settings,
        made=made,
        logs=logs,
        steps_per_epoch=steps_per_epoch,
        num_parameters=num_parameters,
        data_tokens_per_s=time_data_alone(out, settings),
        verdict=verdict,
        best_val_loss=best_val_loss(out),
        sample=sample,
        files={what: str(out / name) for what, name in files.items()},
    )
    return build_report(facts)


def _sample(out: Path, settings: DemoSettings, made: Bins) -> tuple[int, str]:
    """Load the best model as anyone would; give its number of parameters and a text by it."""
    from penstock.demo.train import build
    from penstock.train.checkpoints import load_checkpoint

    model, _ = build(settings)
    model.load_state_dict(load_checkpoint(out))
    tokenizer = made.tokenizer
    start = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    prompt = start + tokenizer.encode(PROMPT) if made.is_python else start or made.first_ids
    ids = model.generate(prompt, SAMPLE_TOKENS, temperature=0.7, top_k=40, seed=settings.seed)
    ended = (list(part) for is_end, part in groupby(ids, lambda i: i == tokenizer.eot_id) if not is_end)
    text = "\n\n".join(tokenizer.decode(part).strip() for part in ended)
    return sum(parameter.numel() for parameter in model.parameters()), text


def _draw(out: Path, vocab_size: int, logs: list[Any], console: Console) -> bool:
    """Draw the losses; without matplotlib, say so and go on. Tells whether there is a plot."""
    from penstock.demo.plot import plot_losses
    from penstock.errors import ConfigError

    try:
        plot_losses(out / PLOT, logs, vocab_size)
    except ConfigError as error:
        console.print(f"no plot: {error}", markup=False, soft_wrap=True)
        return False
    return True


def _say(console: Console, number: str, what: str, words: str) -> None:
    console.print(f"[bold]{number}  {what:<10}[/bold]", end="")
    console.print(words, markup=False, highlight=False, soft_wrap=True)
