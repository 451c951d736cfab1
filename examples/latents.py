"""Train a small diffusion model on what an image encoder and a text encoder made before training.

    python examples/latents.py LATENTS --steps=300

LATENTS/x.latent.npz holds the mean and std of an image's latent, LATENTS/x.text.npy the embeddings of its captions
[captions, tokens, width]: files of one name are one sample. Each time a sample is read, its latent is drawn anew from
its distribution, and one of its captions is chosen. Without such a folder, --make invents one in which the caption
says where the latent is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import penstock

CHANNELS, SIDE, WIDTH, TOKENS = 4, 4, 8, 3


def make_latents(folder: Path, count: int) -> None:
    """Invent latents around four places, and two captions for each that name the place."""
    folder.mkdir(parents=True, exist_ok=True)
    places = penstock.rng(0, "places").normal(0, 2, (4, CHANNELS, SIDE, SIDE))
    words = penstock.rng(0, "words").normal(0, 1, (4, 2, TOKENS, WIDTH))
    for number in range(count):
        draw, kind = penstock.rng(0, "latent", number), number % 4
        mean = places[kind] + draw.normal(0, 0.1, places[kind].shape)
        std = np.full_like(mean, 0.1)
        np.savez(folder / f"{number:04}.latent.npz", mean=mean.astype(np.float16), std=std.astype(np.float16))
        captions = words[kind] + draw.normal(0, 0.05, words[kind].shape)
        np.save(folder / f"{number:04}.text.npy", captions.astype(np.float32))


def open_latents(folder: Path, cache: Path) -> penstock.StreamingDataset:
    steps = [
        *penstock.metadata_pipeline(rename={"latent.npz": "latent", "text.npy": "text"}),
        *penstock.image_latent_pipeline(key={"mean": "latent", "std": "std"}, spread_field="std", scale=0.5),
        *penstock.text_latent_pipeline("text", length=TOKENS),
        *penstock.metadata_pipeline(fields=["latent", "text"]),
    ]
    return penstock.StreamingDataset(
        folder, cache, columns_to_download=["latent.npz", "text.npy"], transforms=steps, shuffle_seed=0
    )


class Flow(nn.Module):
    """Which way a latent that is partly noise should move, given the time and a caption."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = CHANNELS * SIDE * SIDE
        self.network = nn.Sequential(
            nn.Linear(size + 1 + TOKENS * WIDTH, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, size),
        )

    def forward(self, latents: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Latents [b, C, H, W], times [b, 1] from 0 (noise) to 1, text [b, T, D] → velocities [b, C, H, W]."""
        return self.network(torch.cat([latents.flatten(1), time, text.flatten(1)], 1)).view_as(latents)


@torch.no_grad()
def distance(model: Flow, batch: dict[str, torch.Tensor], steps: int = 16) -> float:
    """How far what the model makes of noise and a caption is from the latent that it belongs to."""
    made = torch.randn_like(batch["latent"])
    for step in range(steps):
        time = torch.full((len(made), 1), step / steps)
        made = made + model(made, time, batch["text"]) / steps
    return float((made - batch["latent"]).square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--make", type=int, default=0, metavar="COUNT", help="invent so many first")
    options = parser.parse_args()
    if options.make:
        make_latents(options.latents, options.make)
    model = Flow()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    dataset = open_latents(options.latents, options.out)
    with dataset, penstock.StreamingDataLoader(dataset, 32, drop_last=True) as loader:
        step, before = 0, None
        while step < options.steps:
            for batch in loader:  # {"latent": float32 [32, 4, 4, 4], "text": float32 [32, 3, 8]}
                before = before or distance(model, batch)
                step += 1
                noise, time = torch.randn_like(batch["latent"]), torch.rand(len(batch["latent"]), 1)
                partly = time[:, :, None, None] * (batch["latent"] - noise) + noise
                loss = nn.functional.mse_loss(model(partly, time, batch["text"]), batch["latent"] - noise)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                print(f"step {step} loss {loss.item():.6f}")
                if step == options.steps:
                    break
        print(f"distance of what is made from what is meant: {before:.2f} before, {distance(model, batch):.2f} after")


if __name__ == "__main__":
    main()
