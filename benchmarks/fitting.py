"""What the exact, resumable Lightning loop costs beside a bare PyTorch loop that saves nothing.

Run: python benchmarks/fitting.py. A head on cached features, from steps so small that only the loop's own cost is
left to those of a real head's size; medians of the CPU time of interleaved runs, so that a busy machine matters less.
"""

from __future__ import annotations

import statistics
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from torch import nn

from kitlib.data import loader
from kitlib.training import fit

ROWS, EPOCHS, RUNS = 4096, 3, 3


class Head(pl.LightningModule):
    """Features to classes."""

    def __init__(self, steps: int, width: int):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(512, width), nn.GELU(), nn.Linear(width, 50))
        self.steps = steps

    def training_step(self, batch, batch_idx):  # noqa: D102
        loss = nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):  # noqa: D102
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        return [optimizer], [{"scheduler": fit.warmup_cosine(optimizer, self.steps, 0.1), "interval": "step"}]


def bare(head: Head, batches: loader.Batches) -> None:
    (optimizer,), (schedule,) = head.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches:
            loss = nn.functional.cross_entropy(head.net(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule["scheduler"].step()


def lightning(head: Head, batches: loader.Batches) -> None:
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(head, batches)


def ours(head: Head, batches: loader.Batches) -> None:
    with TemporaryDirectory() as folder:
        fit.fit(head, batches, Path(folder), epochs=EPOCHS, config={}, precision="32-true")


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 512, generator=generator)
    y = torch.randint(50, (ROWS,), generator=generator)

    def load(rows):
        rows = torch.from_numpy(rows)
        return {"x": x[rows], "y": y[rows]}

    print("batch  width  steps  bare ms/step  Lightning ms/step  ours ms/step  ours/Lightning  ours/bare")
    for batch_size, width in ((16, 16), (256, 512), (1024, 1024)):
        steps = fit.total_steps(ROWS, batch_size, 1, EPOCHS)
        seconds: dict[str, list[float]] = {"bare": [], "lightning": [], "ours": []}
        for _ in range(RUNS):
            for loop in (bare, lightning, ours):
                head, batches = Head(steps, width), loader.Batches(ROWS, batch_size, 0, load)
                began = time.process_time()
                loop(head, batches)
                seconds[loop.__name__].append(time.process_time() - began)
        a, b, c = (1000 * statistics.median(times) / steps for times in seconds.values())
        print(f"{batch_size:5d}  {width:5d}  {steps:5d}  {a:12.2f}  {b:17.2f}  {c:12.2f}  {c / b:14.2f}  {c / a:9.2f}")


if __name__ == "__main__":
    main()
