"""Learn which caption belongs to which clip, from a folder of videos and texts.

    python examples/video_captions.py CLIPS --steps=60

CLIPS/x.mp4 is a video, CLIPS/x.txt says what is seen in it: files of one name are one sample. Without such a folder,
--make films one: bars that move left, right, up or down. Clips begin at random; each is matched against all captions
of its batch, as CLIP does. Needs `pip install 'penstock[video]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import penstock

SIZE, FRAMES = 32, 4
CAPTIONS = ("a bar moves to the left", "a bar moves to the right", "a bar rises", "a bar falls")


def make_clips(folder: Path, count: int) -> None:
    """Film bars that move: 24 frames at 12 a second."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw = penstock.rng(0, "film", number)
        kind, colour, start = number % 4, draw.integers(120, 256, 3), int(draw.integers(0, 48))
        with av.open(str(folder / f"{number:04}.mp4"), "w") as film:
            stream = film.add_stream("libx264", rate=12, options={"g": "12"})
            stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
            for step in range(24):
                at = (start + (2 * step if kind in (1, 3) else -2 * step)) % 48
                pixels = np.full((48, 48, 3), 20, np.uint8)
                # Rows move up and down, columns to the sides.
                np.swapaxes(pixels, 0, 1 if kind < 2 else 0)[np.arange(at, at + 8) % 48] = colour
                film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            film.mux(stream.encode(None))
        (folder / f"{number:04}.txt").write_text(CAPTIONS[kind])


def open_clips(folder: Path, cache: Path) -> penstock.StreamingDataset:
    steps = [
        *penstock.text_to_video_pipeline(
            "mp4", text_field="txt", frames=FRAMES, fps=12, size=SIZE, text_options={"files": True}
        ),
        *penstock.metadata_pipeline(fields=["mp4", "txt"]),
    ]
    columns = ["mp4", "txt"]
    return penstock.StreamingDataset(folder, cache, columns_to_download=columns, transforms=steps, shuffle_seed=0)


class Matcher(nn.Module):
    """Clips and captions as points on a sphere, near each other where they belong together."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = nn.Sequential(
            *(nn.Conv3d(3, 16, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.ReLU(), nn.Conv3d(16, width, 3, 2, 1), nn.ReLU()),
            *(nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(width, width)),
        )
        self.read = nn.EmbeddingBag(256 * 8, width)

    def forward(self, clips: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Score every clip of uint8 [b, T, H, W, 3] with every caption: [b, captions]."""
        seen = self.see(clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
        # Pairs of letters, hashed: enough to tell short captions apart.
        letters = [
            [(a * 31 + b) % 2048 for a, b in zip(text.encode(), text.encode()[1:], strict=False)] for text in captions
        ]
        starts = np.cumsum([0, *map(len, letters[:-1])])
        read = self.read(torch.tensor([pair for text in letters for pair in text]), torch.tensor(starts))
        return 10 * nn.functional.normalize(seen) @ nn.functional.normalize(read).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--make", type=int, default=0, metavar="COUNT", help="film so many clips first")
    options = parser.parse_args()
    if options.make:
        make_clips(options.clips, options.make)
    model = Matcher()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    with open_clips(options.clips, options.out) as clips, penstock.StreamingDataLoader(clips, 16) as loader:
        right, step = [], 0
        while step < options.steps:
            for batch in loader:  # {"mp4": uint8 [16, 4, 32, 32, 3], "txt": list of 16 texts}
                step += 1
                texts = sorted(set(batch["txt"]))
                scores = model(batch["mp4"], texts)
                wanted = torch.tensor([texts.index(text) for text in batch["txt"]])
                loss = nn.functional.cross_entropy(scores, wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                right.append(float((scores.argmax(1) == wanted).float().mean()))
                print(f"step {step} loss {loss.item():.6f}")
                if step == options.steps:
                    break
    print(f"{np.mean(right[-5:]):.1%} of the last clips found their caption")


if __name__ == "__main__":
    main()
