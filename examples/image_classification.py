"""Train a small network on a folder of images, one subfolder a class, and resume where it stopped.

    python examples/image_classification.py IMAGES --out=run --steps=60
    python examples/image_classification.py IMAGES --out=run --steps=90      # goes on at step 61

IMAGES/cat/1.jpg and IMAGES/dog/2.png are a cat and a dog. Without such a folder, --make draws one: circles, squares
and stripes. Broken files are left out and listed at the end. Needs `pip install 'penstock[image]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import penstock


def make_images(folder: Path, count: int) -> None:
    """Draw shapes of random place, size and colour: three classes."""
    from PIL import Image

    y, x = np.mgrid[:96, :128]
    for number in range(count):
        draw = penstock.rng(0, "draw", number)
        kind = ("circle", "square", "stripes")[number % 3]
        top, left, size = draw.integers(30, 60), draw.integers(30, 90), draw.integers(15, 28)
        masks = {
            "circle": (y - top) ** 2 + (x - left) ** 2 < size**2,
            "square": (abs(y - top) < size) & (abs(x - left) < size),
            "stripes": (x + y) % size < size // 2,
        }
        ground, colour = draw.integers(0, 100, 3), draw.integers(150, 256, 3)
        pixels = np.where(masks[kind][:, :, None], colour, ground) + draw.integers(-10, 10, (96, 128, 3))
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / kind / f"{number:04}.jpg")


def rows_of(folder: Path) -> list[dict[str, str]]:
    """One row for each file of a subfolder: the table that describes the samples."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return [
        {"index": f"{path.parent.name}/{path.name}", "image": str(path), "label": path.parent.name} for path in files
    ]


def open_part(index: penstock.Index, out: Path, classes: list[str], *, train: bool) -> penstock.StreamingDataset:
    steps = [
        *penstock.image_pipeline(48, augment=train, normalize=(0.5, 0.5)),
        *penstock.metadata_pipeline(classes={"label": classes}, fields=["image", "label"]),
    ]
    seed = 1 if train else None
    return penstock.StreamingDataset(
        index, out / "stream", columns_to_download=["image"], transforms=steps, shuffle_seed=seed, on_error="skip"
    )


def network(num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes)),
    )


def share_right(model: nn.Module, dataset: penstock.StreamingDataset) -> float:
    """The part of a dataset's images that the model names correctly."""
    right = total = 0
    with torch.no_grad(), penstock.StreamingDataLoader(dataset, 32) as loader:
        for batch in loader:
            right += int((model(batch["image"]).argmax(1) == batch["label"]).sum())
            total += len(batch["label"])
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--make", type=int, default=0, metavar="COUNT", help="draw so many images first")
    options = parser.parse_args()
    if options.make:
        make_images(options.images, options.make)
    rows = rows_of(options.images)
    classes = sorted({row["label"] for row in rows})
    index = penstock.build_index(lambda: rows, folder=options.out / "index")
    train_rows, val_rows = index.split(0.2, seed=0)
    train = open_part(train_rows, options.out, classes, train=True)
    validation = open_part(val_rows, options.out, classes, train=False)
    model = network(len(classes))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    with train, validation, penstock.StreamingDataLoader(train, options.batch_size, drop_last=True) as loader:
        step, saved = 0, options.out / "last.pt"
        if saved.exists():
            step = penstock.load_training_checkpoint(saved, model=model, optimizer=optimizer, loader=loader)["step"]
        while step < options.steps:
            for batch in loader:  # {"image": float32 [b, 3, 48, 48], "label": int64 [b]}
                step += 1
                loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                print(f"step {step} loss {loss.item():.6f}")
                if step == options.steps:
                    break
        penstock.save_training_checkpoint(saved, step=step, model=model, optimizer=optimizer, loader=loader)
        right, left_out = share_right(model, validation), dict(loader.stats.skipped)
        print(f"{right:.1%} of {len(validation)} images right, {left_out} left out")


if __name__ == "__main__":
    main()
