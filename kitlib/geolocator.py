"""The network as it learns: an encoder or its cached features, the heads, what they are taught, and at which rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from kitlib import fitting, lora, losses, views
from kitlib.encoders import Encoder
from kitlib.heads import Answer, Heads

SOFT_LABELS = ("place", "matrix", "none")
KM_PER_NAT = 1000.0  # being so far off costs as much as one nat of cross-entropy

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Teaching:
    """What the heads are taught, and how; `multiview.Config` explains the fields of the same names."""

    soft_labels: str
    temperature_km: float
    view_dropout: float
    mirror: bool
    vary: float
    weight_decay: float
    warmup: float
    layer_decay: float


class Geolocator(pl.LightningModule):
    """Heads, and the encoder below them when it learns too, with their losses and optimizer.

    Batches hold `features` or `views` (see `encode`), and of each place `state` and `cell` (B,), its classes, and
    `place` (B, 3), its unit vector. rate: of the heads; encoder_rate: of the encoder's top layer. n_blocks: last
    blocks of the encoder that learn, -1 for all of it. lora_rank: of updates that learn instead, 0 for none.
    """

    def __init__(
        self,
        heads: Heads,
        encoder: Encoder | None,
        teaching: Teaching,
        total_steps: int,
        *,
        rate: float,
        encoder_rate: float = 0.0,
        n_blocks: int = -1,
        lora_rank: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.encoder, self.teaching = heads, encoder, teaching
        self.total_steps, self.rate, self.encoder_rate = total_steps, rate, encoder_rate
        self.strict_loading = False  # see state_dict
        self.layers: list[list[nn.Parameter]] = []  # those of the encoder that learn, from input to output
        if encoder is not None and lora_rank:
            self.layers = lora.add(encoder, lora_rank)
        elif encoder is not None:
            self.layers = encoder.train_last(None if n_blocks < 0 else n_blocks)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss over the batch; its parts are logged."""
        features = encode(self._varied(batch), self.encoder)
        keep = torch.rand(features.shape[:2], device=self.device) >= self.teaching.view_dropout
        keep |= ~keep.any(1, keepdim=True)  # a place that would lose every view keeps them all
        parts = self.parts(self.heads(features, keep), batch)
        self.log_dict(parts)
        return parts["state_loss"] + parts["cell_loss"] + (parts["cell_km"] + parts["gps_km"]) / KM_PER_NAT

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log how held-out places fare: the share with the right state first, and the GPS head's mean error."""
        answer = self.heads(encode(batch, self.encoder))
        right = (answer.states.argmax(1) == batch["state"]).float().mean()
        km = losses.haversine_km(answer.gps, batch["place"]).mean()
        n = len(batch["place"])
        self.log_dict({"held_out_top1": right, "held_out_gps_km": km}, batch_size=n, sync_dist=True)

    def parts(self, answer: Answer, batch: Batch) -> dict[str, torch.Tensor]:
        """The parts of the loss, and the share of the state targets that the true state keeps."""
        teaching, heads, place = self.teaching, self.heads, batch["place"]
        if teaching.soft_labels == "place":
            states = losses.place_targets(place, heads.state_vectors, batch["state"], teaching.temperature_km)
        elif teaching.soft_labels == "matrix":
            km = losses.haversine_km(heads.state_vectors[:, None], heads.state_vectors)
            states = losses.matrix_targets(km, teaching.temperature_km)[batch["state"]]
        else:
            states = losses.hard_targets(batch["state"], len(heads.state_vectors))
        cells = losses.place_targets(place, heads.cell_vectors, batch["cell"], teaching.temperature_km)
        moved = heads.moved(answer.offsets, batch["cell"][:, None])[:, 0]
        return {
            "state_loss": losses.soft_cross_entropy(answer.states, states),
            "cell_loss": losses.soft_cross_entropy(answer.cells, cells),
            "cell_km": losses.haversine_km(moved, place).mean(),
            "gps_km": losses.haversine_km(answer.gps, place).mean(),
            "true_state_mass": losses.true_mass(states, batch["state"]).mean(),
        }

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without the encoder's frozen weights, which are on the disk already: checkpoints stay small."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: t for name, t in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up and cosine; the further down a layer of the encoder, the lower its rate."""
        groups = _groups(self.heads.parameters(), self.rate, self.teaching.weight_decay)
        for depth, layer in enumerate(reversed(self.layers)):
            rate = self.encoder_rate * self.teaching.layer_decay**depth
            groups += _groups(layer, rate, self.teaching.weight_decay)
        optimizer = torch.optim.AdamW(groups, fused=fitting.may_fuse(self))
        schedule = fitting.warmup_cosine(optimizer, self.total_steps, self.teaching.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _varied(self, batch: Batch) -> Batch:
        """The batch as it is learned from: places mirrored at random, pictures varied in light and zoom too."""
        if "features" in batch:
            features = batch["features"]
            which = torch.randint(features.shape[1], (len(features),), device=features.device)
            return {"features": features[torch.arange(len(features), device=features.device), which][:, None]}
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        smaller = self.encoder.preprocess.shrink(batch["views"]) if self.encoder else batch["views"]
        mirrored, light, zoom = 0.5 * self.teaching.mirror, 0.15 * self.teaching.vary, 0.1 * self.teaching.vary
        return {"views": views.augment(smaller, generator, mirrored, light, zoom)}


def encode(batch: Batch, encoder: Encoder | None, mirrored: bool = False) -> torch.Tensor:
    """Features (B, V, D) of a batch, plain or mirrored, and nothing random.

    The batch holds `features` (B, M, V, D), M being 1 or 2 (plain and mirrored), or `views` (B, V, 3, H, W) uint8.
    """
    if encoder is None:
        return batch["features"][:, int(mirrored)]
    pictures = views.mirror(batch["views"]) if mirrored else batch["views"]
    return encoder(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])


def _groups(parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for biases, norms and other vectors."""
    parameters = list(parameters)
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group | {"lr": rate} for group in groups if group["params"]]
