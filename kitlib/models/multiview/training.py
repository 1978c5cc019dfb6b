"""The losses of the heads: soft targets for states and geocells, distances for points."""

from __future__ import annotations

from typing import Any

import torch

from kitlib.models.multiview.config import GeolocatorOptions
from kitlib.models.multiview.heads import HeadOutputs, Heads
from kitlib.training import losses, sphere
from kitlib.training.learner import Batch, Learner, encode
from kitlib.vision.encoders import Encoder

KM_PER_NAT = 1000.0  # error that costs as much as one nat of cross-entropy


class Geolocator(Learner):
    """Trains heads, and the encoder below them if there is one.

    Batches hold `state` and `cell` (B,), the classes, and `place` (B, 3), unit vectors; `guessed` (B, S), if there,
    replaces targets of the states where it is no NaN. rates: the keyword arguments of
    `Learner`.
    """

    options: GeolocatorOptions

    def __init__(
        self, heads: Heads, encoder: Encoder | None, options: GeolocatorOptions, total_steps: int, **rates: Any
    ) -> None:
        super().__init__(encoder, options, total_steps, **rates)
        self.heads = heads

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss over the batch; logs its parts."""
        parts = self.parts(self.heads(*self.seen(batch)), batch)
        self.log_dict(parts)
        return parts["state_loss"] + parts["cell_loss"] + (parts["cell_km"] + parts["gps_km"]) / KM_PER_NAT

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the share of held-out places whose state ranks first, and the mean error of the GPS head."""
        outputs = self.heads(encode(batch, self.encoder))
        right = (outputs.states.argmax(1) == batch["state"]).float().mean()
        km = sphere.haversine_km(outputs.gps, batch["place"]).mean()
        n = len(batch["place"])
        self.log_dict({"held_out_top1": right, "held_out_gps_km": km}, batch_size=n, sync_dist=True)

    def parts(self, outputs: HeadOutputs, batch: Batch) -> dict[str, torch.Tensor]:
        """The parts of the loss, and the mean target probability of the true state."""
        options, heads, place = self.options, self.heads, batch["place"]
        if options.soft_labels == "place":
            states = losses.place_targets(place, heads.state_vectors, batch["state"], options.temperature_km)
        elif options.soft_labels == "matrix":
            km = sphere.haversine_km(heads.state_vectors[:, None], heads.state_vectors)
            states = losses.matrix_targets(km, options.temperature_km)[batch["state"]]
        else:
            states = losses.hard_targets(batch["state"], len(heads.state_vectors))
        if "guessed" in batch:  # of test places, NaN of all others
            states = torch.where(batch["guessed"].isnan(), states, batch["guessed"])
        cells = losses.place_targets(place, heads.cell_vectors, batch["cell"], options.temperature_km)
        moved = heads.moved(outputs.offsets, batch["cell"][:, None])[:, 0]
        return {
            "state_loss": losses.soft_cross_entropy(outputs.states, states),
            "cell_loss": losses.soft_cross_entropy(outputs.cells, cells),
            "cell_km": sphere.haversine_km(moved, place).mean(),
            "gps_km": sphere.haversine_km(outputs.gps, place).mean(),
            "true_state_mass": losses.true_mass(states, batch["state"]).mean(),
        }
