"""The losses of the heads: soft targets for states and geocells, distances for points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from kitlib.core.settings import Names
from kitlib.models.multiview.heads import Answer, Heads
from kitlib.training import losses, sphere
from kitlib.training.learner import Batch, Learner, TrainingOptions, encode
from kitlib.vision.encoders import Encoder

SOFT_LABELS = ("place", "matrix", "none")
KM_PER_NAT = 1000.0  # being so far off costs as much as one nat of cross-entropy


@dataclass(frozen=True)
class GeolocatorOptions(TrainingOptions):
    """How heads and encoder are trained."""

    soft_labels: str = "place"  # distances behind the state targets: from the place, the matrix of states, or none
    temperature_km: float = 75.0  # km at which a target's weight falls to 1/e, of states and of cells

    CHOICES: ClassVar = {"soft_labels": SOFT_LABELS}
    POSITIVE: ClassVar[Names] = ("temperature_km",)


class Geolocator(Learner):
    """Heads, and the encoder below them when it learns too, with their losses.

    Batches hold of each place `state` and `cell` (B,), its classes, and `place` (B, 3), its unit vector.
    rates: the keyword arguments of `Learner`.
    """

    options: GeolocatorOptions

    def __init__(
        self, heads: Heads, encoder: Encoder | None, options: GeolocatorOptions, total_steps: int, **rates: Any
    ) -> None:
        super().__init__(encoder, options, total_steps, **rates)
        self.heads = heads

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss over the batch; its parts are logged."""
        parts = self.parts(self.heads(*self.seen(batch)), batch)
        self.log_dict(parts)
        return parts["state_loss"] + parts["cell_loss"] + (parts["cell_km"] + parts["gps_km"]) / KM_PER_NAT

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log how held-out places fare: the share with the right state first, and the GPS head's mean error."""
        answer = self.heads(encode(batch, self.encoder))
        right = (answer.states.argmax(1) == batch["state"]).float().mean()
        km = sphere.haversine_km(answer.gps, batch["place"]).mean()
        n = len(batch["place"])
        self.log_dict({"held_out_top1": right, "held_out_gps_km": km}, batch_size=n, sync_dist=True)

    def parts(self, answer: Answer, batch: Batch) -> dict[str, torch.Tensor]:
        """The parts of the loss, and the share of the state targets that the true state keeps."""
        options, heads, place = self.options, self.heads, batch["place"]
        if options.soft_labels == "place":
            states = losses.place_targets(place, heads.state_vectors, batch["state"], options.temperature_km)
        elif options.soft_labels == "matrix":
            km = sphere.haversine_km(heads.state_vectors[:, None], heads.state_vectors)
            states = losses.matrix_targets(km, options.temperature_km)[batch["state"]]
        else:
            states = losses.hard_targets(batch["state"], len(heads.state_vectors))
        cells = losses.place_targets(place, heads.cell_vectors, batch["cell"], options.temperature_km)
        moved = heads.moved(answer.offsets, batch["cell"][:, None])[:, 0]
        return {
            "state_loss": losses.soft_cross_entropy(answer.states, states),
            "cell_loss": losses.soft_cross_entropy(answer.cells, cells),
            "cell_km": sphere.haversine_km(moved, place).mean(),
            "gps_km": sphere.haversine_km(answer.gps, place).mean(),
            "true_state_mass": losses.true_mass(states, batch["state"]).mean(),
        }
