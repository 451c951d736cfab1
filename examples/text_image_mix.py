"""One model, three sources: two kinds of text mixed inside batches, and images by turns with them.

    python examples/text_image_mix.py --steps=40 --out=run
    python examples/text_image_mix.py --steps=80 --out=run       # goes on in the middle of a turn

Of every 4 turns 3 are text and 1 is images; a batch of text holds stories and code as 3 to 1, exactly. A turn of images
is two batches, after which the optimizer steps once. The data is made up on the spot.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import penstock

SEQ_LEN, SIDE = 32, 16


def make_texts() -> tuple[list[str], list[str]]:
    """Stories, and code: two languages of few words."""
    names, places = ("Ada", "Ben", "Cleo", "Dan"), ("mill", "hill", "lake", "shop")
    stories = [f"{names[k % 4]} went to the {places[k // 4 % 4]} and came back {k % 7} times." for k in range(300)]
    code = [f"def f{k % 9}(x):\n    return x * {k % 5} + {k % 3}\n" for k in range(100)]
    return stories, code


def make_images() -> list[dict[str, np.ndarray]]:
    """Stripes, lying or standing: the label is 0 or 1."""
    images = []
    for number in range(120):
        draw = penstock.rng(0, "draw", number)
        stripes = (np.arange(SIDE) // draw.integers(2, 4) % 2).astype(np.float32)
        pixels = np.tile(stripes[:, None], (1, SIDE)) + draw.normal(0, 0.2, (SIDE, SIDE)).astype(np.float32)
        images.append({"pixels": (pixels.T if number % 2 else pixels).astype(np.float32), "label": number % 2})
    return images


def open_loader() -> penstock.MultiStreamDataLoader:
    tokens = penstock.TokenizeText(penstock.Tokenizer.from_pretrained("bytes"), SEQ_LEN)
    stories, code = ([tokens({"text": text}) for text in texts] for texts in make_texts())
    texts = penstock.mix({"stories": stories, "code": code}, {"stories": 3, "code": 1}, stop="never")
    streams = [
        penstock.StreamOptions(name="text", ratio=3, batch_gpu=16, is_main=True),
        penstock.StreamOptions(name="images", ratio=1, batch_gpu=8, num_accum_rounds=2),
    ]
    datasets = {"text": texts, "images": make_images()}
    return penstock.MultiStreamDataLoader(datasets, streams, schedule="fixed_random_order", num_workers=1)


class Model(nn.Module):
    """A body for both, with a head for the next byte and one for the label of an image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bytes = nn.Embedding(257, width)
        self.rows = nn.Linear(SIDE, width)
        self.body = nn.GRU(width, width, batch_first=True)
        self.next_byte, self.label = nn.Linear(width, 257), nn.Linear(width, 2)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if batch.stream_name == "text":
            seen, _ = self.body(self.bytes(batch["input_ids"]))
            return nn.functional.cross_entropy(self.next_byte(seen).flatten(0, 1), batch["labels"].flatten())
        _, last = self.body(self.rows(batch["pixels"]))
        return nn.functional.cross_entropy(self.label(last[0]), batch["label"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    with open_loader() as loader:
        step, saved = 0, options.out / "last.pt"
        if saved.exists():
            step = penstock.load_training_checkpoint(saved, model=model, optimizer=optimizer, loader=loader)["step"]
        for batch in loader:
            loss = model.loss(batch)
            loss.backward()
            if batch.num_accum_rounds_left:
                continue
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            print(f"step {step} loss {loss.item():.6f} {batch.stream_name}")
            if step == options.steps:
                break
        options.out.mkdir(parents=True, exist_ok=True)
        penstock.save_training_checkpoint(saved, step=step, model=model, optimizer=optimizer, loader=loader)


if __name__ == "__main__":
    main()
