"""A network on an encoder as it learns: what it sees of a batch, what learns at which rate, what a checkpoint holds.

`Geolocator`, `MetricTraining` and `MatchTraining` are Learners with losses and logs of their own.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from kitlib.training import fit
from kitlib.training.options import EncoderOptions, TrainingOptions
from kitlib.vision import augment, drop_path, lora
from kitlib.vision.encoders import Encoder

Batch = dict[str, torch.Tensor]


class Learner(pl.LightningModule):
    """A network on an encoder, or on the encoder's cached features, with its optimizer.

    Batches hold `features` or `views` (see `encode`), and what the losses compare with. rate: of all but the encoder;
    encoder_rate: of the encoder's top layer. n_blocks: last blocks of the encoder that learn, -1 for all of it.
    lora_rank: of updates that learn instead, 0 for none.
    """

    options: TrainingOptions

    def __init__(
        self,
        encoder: Encoder | None,
        options: TrainingOptions,
        total_steps: int,
        *,
        rate: float,
        encoder_rate: float = 0.0,
        n_blocks: int = -1,
        lora_rank: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.options, self.total_steps = encoder, options, total_steps
        self.rate, self.encoder_rate = rate, encoder_rate
        self.strict_loading = False  # see state_dict
        self.layers: list[list[nn.Parameter]] = []  # those of the encoder that learn, from input to output
        if encoder is not None and lora_rank:
            self.layers = lora.add(encoder, lora_rank)
        elif encoder is not None:
            self.layers = encoder.train_last(None if n_blocks < 0 else n_blocks)
        if encoder is not None and options.drop_path:
            drop_path.add(encoder, options.drop_path)

    def seen(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, V, D) of the batch as it is learned from, varied, and which views (B, V) bool to keep."""
        features = encode(varied(batch, self.encoder, self.options), self.encoder)
        return features, kept_views(features, self.options.view_dropout)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """All parameters but the encoder's, with their rates."""
        return [([p for name, p in self.named_parameters() if not name.startswith("encoder.")], self.rate)]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without the encoder's frozen weights, which are on the disk already: checkpoints stay small."""
        encoder = self.encoder or nn.Module()
        frozen = {f"encoder.{name}" for name, p in encoder.named_parameters() if not p.requires_grad}
        return {name: t for name, t in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up and cosine; the further down a layer of the encoder, the lower its rate."""
        rates, options = self.rates(), self.options
        for depth, layer in enumerate(reversed(self.layers)):
            rates.append((layer, self.encoder_rate * options.layer_decay**depth))
        groups = [group for some, rate in rates for group in _groups(some, rate, options.weight_decay)]
        optimizer = torch.optim.AdamW(groups, fused=fit.may_fuse(self))
        schedule = fit.warmup_cosine(optimizer, self.total_steps, options.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def encode(batch: Batch, encoder: Encoder | None, mirrored: bool = False) -> torch.Tensor:
    """Features (B, V, D) of a batch, plain or mirrored, and nothing random.

    The batch holds `features` (B, M, V, D), M being 1 or 2 (plain and mirrored), or for an encoder `views`
    (B, V, 3, H, W) uint8.
    """
    if encoder is None:
        return batch["features"][:, int(mirrored)]
    pictures = augment.mirror(batch["views"]) if mirrored else batch["views"]
    return encoder(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])


def varied(batch: Batch, encoder: Encoder | None, options: EncoderOptions) -> Batch:
    """What is learned from, for `encode`: half of the places mirrored, pictures varied in light and zoom too.

    Of features each place gets one of its M sides at random, the plain one unless `options.mirror`.
    """
    mirror, vary = options.mirror, options.vary
    if encoder is None:
        features = batch["features"]
        rows = torch.arange(len(features), device=features.device)
        sides = features.shape[1] if mirror else 1
        return {"features": features[rows, torch.randint(sides, (len(features),), device=features.device)][:, None]}
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    smaller = encoder.preprocess.shrink(batch["views"])
    views = augment.augment(smaller, generator, 0.5 * mirror, 0.15 * vary, 0.1 * vary)
    return {"views": augment.erase(views, generator, options.erase) if options.erase else views}


def kept_views(features: torch.Tensor, dropout: float) -> torch.Tensor:
    """Which views (B, V) bool of features (B, V, D) are kept when a share of `dropout` is left out at random."""
    keep = torch.rand(features.shape[:2], device=features.device) >= dropout
    return keep | ~keep.any(1, keepdim=True)  # a place that would lose every view keeps them all


def _groups(parameters: list[nn.Parameter], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for biases, norms and other vectors."""
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group | {"lr": rate} for group in groups if group["params"]]
