"""Train a small state-space model on sound, frame by frame, in rounds: train some batches, validate, train the next.

    python examples/train_sashimi.py examples/sashimi.yaml                                  # seven rounds
    python examples/train_sashimi.py examples/sashimi.yaml --resume trainer.max_epochs=9    # two more

The YAML file says how much comes between validations; what follows it overrides it. Without --data, a folder of sound
files, tones are made. Needs `pip install 'penstock[audio,lightning]' omegaconf`.
"""

import argparse
import math
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import nn

import penstock

DEFAULTS = {
    "loader": {"batch_size": 8},
    "trainer": {"max_epochs": 7, "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    "dataset": {"bits": 8, "sample_len": 512, "train_percentage": 0.75, "drop_tail": True},
    "model": {"dim": 32, "layers": 2, "state": 16, "learning_rate": 0.01},
}


def make_tones(folder: Path, count: int = 24, rate: int = 8000) -> None:
    """Write two seconds each of a tone with overtones, which swells and fades."""
    import soundfile

    folder.mkdir(parents=True)
    time = np.arange(2 * rate) / rate
    for number in range(count):
        draw = penstock.rng(0, "tone", number)
        parts = [np.sin(math.tau * (220 * 2 ** draw.uniform(0, 1)) * k * time) / k for k in (1, 2, 3)]
        soundfile.write(folder / f"{number}.wav", sum(parts) * np.sin(math.pi * time / 2) / 2, rate)


class StateSpace(nn.Module):
    """y = x * K + D x, with K[t] = 2 Re Σ_n C_n exp(t Δ A_n): a linear recurrence over all time, as one convolution."""

    def __init__(self, dim: int, state: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.log_step = nn.Parameter(torch.linspace(math.log(1e-3), math.log(1e-1), dim))
        self.log_decay = nn.Parameter(torch.full((dim, state), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(state).repeat(dim, 1))
        self.output = nn.Parameter(torch.randn(dim, state, 2) / math.sqrt(2))
        self.skip = nn.Parameter(torch.randn(dim))

    def kernel(self, times):
        a, step = torch.complex(-self.log_decay.exp(), self.frequency), self.log_step.exp()[:, None]  # [dim, state]
        c = torch.view_as_complex(self.output) * (torch.exp(a * step) - 1) / a  # the input is held for a step
        return 2 * torch.einsum("ds,dst->td", c, torch.exp((a * step)[:, :, None] * times)).real

    def forward(self, inputs):
        x, length = self.norm(inputs), inputs.shape[1]  # [batch, length, dim]
        kernel = self.kernel(torch.arange(length, device=x.device))
        # Twice as long, so that the end does not come round to the beginning.
        spectrum = torch.fft.rfft(x, n=2 * length, dim=1) * torch.fft.rfft(kernel, n=2 * length, dim=0)
        y = torch.fft.irfft(spectrum, n=2 * length, dim=1)[:, :length] + self.skip * x
        return inputs + self.mix(nn.functional.gelu(y))


class Sashimi(lightning.LightningModule):
    def __init__(self, d_output, dim, layers, state, learning_rate):
        super().__init__()
        self.learning_rate = learning_rate
        blocks = [StateSpace(dim, state) for _ in range(layers)]
        self.net = nn.Sequential(nn.Embedding(d_output, dim), *blocks, nn.LayerNorm(dim), nn.Linear(dim, d_output))

    def loss(self, batch, name):
        codes, targets, _ = batch  # int64 [batch, length], [batch, length, 1]
        loss = nn.functional.cross_entropy(self.net(codes).flatten(0, 1), targets.flatten())
        self.log(name, loss, on_step=False, on_epoch=True, batch_size=len(codes))
        return loss

    def training_step(self, batch, batch_idx):
        return self.loss(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.loss(batch, "validation")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    def on_train_epoch_end(self):
        found = self.trainer.callback_metrics.items()
        print(f"step {self.global_step}", *(f"{name} {value:.6f}" for name, value in found), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="train.train_chunk_size=10")
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_intermixed_args()
    config = OmegaConf.merge(DEFAULTS, OmegaConf.load(args.config), OmegaConf.from_dotlist(args.overrides))
    folder = args.data or args.out / "tones"
    if not args.data and not folder.exists():
        make_tones(folder)
    sizes = penstock.resolve_rounds(config)
    lightning.seed_everything(0, verbose=False)
    data = penstock.ChunkedQuantizedAutoregressiveAudio(folder, **config.dataset, **config.loader)
    data.set_chunk_sizes(sizes.train_chunk_size, sizes.val_chunk_size)
    limits = {"limit_train_batches": sizes.limit_train_batches, "limit_val_batches": sizes.limit_val_batches}
    model = Sashimi(data.d_output, **config.model)
    callbacks = [ModelCheckpoint(args.out, save_last=True), *([penstock.RoundsCallback()] if sizes.enabled else [])]
    trainer = lightning.Trainer(**{**config.trainer, **limits}, callbacks=callbacks)
    trainer.fit(model, data.train_dataloader(), data.val_dataloader(), ckpt_path="last" if args.resume else None)


if __name__ == "__main__":
    main()
