"""Train a small network on a folder of sounds, one subfolder a class.

    python examples/audio_classification.py SOUNDS --steps=60

SOUNDS/bell/1.wav and SOUNDS/horn/2.flac are a bell and a horn. Without such a folder, --make plays one. A random
second of each is heard at 8 kHz; broken files are left out and counted. Needs `pip install 'penstock[audio]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import penstock

RATE = 8_000


def make_sounds(folder: Path, count: int) -> None:
    """Play tones, chirps and noise of random pitch and loudness, two seconds of 22,050 frames each."""
    import soundfile

    t = np.arange(2 * 22_050) / 22_050
    for number in range(count):
        draw = penstock.rng(0, "play", number)
        kind = ("tone", "chirp", "noise")[number % 3]
        pitch = draw.uniform(200, 1200)
        wave = {
            "tone": np.sin(2 * np.pi * pitch * t),
            "chirp": np.sin(2 * np.pi * (pitch + 400 * (t % 0.5)) * t),
            "noise": draw.standard_normal(len(t)) / 3,
        }[kind]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / kind / f"{number:04}.wav", wave * draw.uniform(0.2, 0.6), 22_050)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """One row for each file of a subfolder: the table that describes the samples."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return [
        {"index": f"{path.parent.name}/{path.name}", "audio": str(path), "label": path.parent.name} for path in files
    ]


def open_part(index: penstock.Index, out: Path, classes: list[str], *, train: bool) -> penstock.StreamingDataset:
    steps = [
        *penstock.audio_pipeline(sample_rate=RATE, seconds=1, crop="random" if train else "start"),
        *penstock.metadata_pipeline(classes={"label": classes}, fields=["audio", "label"]),
    ]
    options = {"columns_to_download": ["audio"], "transforms": steps, "on_error": "skip"}
    return penstock.StreamingDataset(index, out / "stream", shuffle_seed=1 if train else None, **options)


class Listener(nn.Module):
    """Which frequencies there are and when, seen by a small network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.window = nn.Buffer(torch.hann_window(256))
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU()),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, num_classes)),
        )

    def forward(self, sounds: torch.Tensor) -> torch.Tensor:
        """Score sounds of float32 [b, 1, frames]: [b, classes]."""
        spectra = torch.stft(sounds[:, 0], 256, 128, window=self.window, return_complex=True).abs()
        return self.network(torch.log(spectra + 1e-3)[:, None])


def share_right(model: nn.Module, dataset: penstock.StreamingDataset) -> float:
    """The part of a dataset's sounds that the model names correctly."""
    right = total = 0
    with torch.no_grad(), penstock.StreamingDataLoader(dataset, 32) as loader:
        for batch in loader:
            right += int((model(batch["audio"]).argmax(1) == batch["label"]).sum())
            total += len(batch["label"])
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--make", type=int, default=0, metavar="COUNT", help="play so many sounds first")
    options = parser.parse_args()
    if options.make:
        make_sounds(options.sounds, options.make)
    rows = rows_of(options.sounds)
    classes = sorted({row["label"] for row in rows})
    train_rows, val_rows = penstock.build_index(lambda: rows, folder=options.out / "index").split(0.2, seed=0)
    train = open_part(train_rows, options.out, classes, train=True)
    validation = open_part(val_rows, options.out, classes, train=False)
    model = Listener(len(classes))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    with train, validation, penstock.StreamingDataLoader(train, 16, drop_last=True) as loader:
        step = 0
        while step < options.steps:
            for batch in loader:  # {"audio": float32 [16, 1, 8000], "label": int64 [16]}
                step += 1
                loss = nn.functional.cross_entropy(model(batch["audio"]), batch["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                print(f"step {step} loss {loss.item():.6f}")
                if step == options.steps:
                    break
        right, left_out = share_right(model, validation), dict(loader.stats.skipped)
        print(f"{right:.1%} of {len(validation)} sounds right, {left_out} left out")


if __name__ == "__main__":
    main()
