"""The sessions of families that compute in torch: the number type of a run, and the inputs of its networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from kitlib.core import paths
from kitlib.core.settings import Settings
from kitlib.data.places import Places
from kitlib.evaluation import crossval
from kitlib.evaluation.runs import Run
from kitlib.vision import encoders, lora
from kitlib.vision.device import best_device, best_dtype, dtype_of, precision_of
from kitlib.vision.inputs import Inputs

C = TypeVar("C", bound=Settings)


class TorchSession(crossval.Session[C]):
    """A session that computes in the number type that its run began with."""

    def __init__(self, run: Run, places: Places, *args: Any, **options: Any) -> None:
        super().__init__(run, places, *args, **options)
        self.device = best_device()
        self.dtype = dtype_of(run.settings, self.device)

    @classmethod
    def resolve(cls, config: C, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        """The number type: the one that the run was started in, else `device.best_dtype`.

        A type named by KITLIB_PRECISION counts in any case; a run started in another is then refused by `runs.start`.
        """
        device = best_device()
        keeps = recorded is not None and paths.precision_name() == "auto"
        return {"precision": precision_of(dtype_of(recorded, device) if keeps and recorded else best_dtype(device))}


class EncoderSession(TorchSession[C], Inputs):
    """A session on the views of one encoder, whose Config has encoder, image_size and mirror."""

    def __init__(self, run: Run, places: Places, *args: Any, **options: Any) -> None:
        TorchSession.__init__(self, run, places, *args, **options)
        config: Any = self.config
        Inputs.__init__(self, places, config.encoder, config.image_size, config.mirror, self.dtype)

    @classmethod
    def check_model(cls, config: C) -> None:
        """Refuse an encoder that cannot be loaded, or not be trained as the config says."""
        settings = asdict(config)  # type: ignore[call-overload]
        names = paths.joined(settings["encoder"])
        encoder, *_ = [encoders.load(name, settings["image_size"] or None) for name in names]
        if settings.get("finetune_epochs") or settings.get("finetune"):
            encoders.check_trainable(settings["encoder"])
            if settings.get("lora_rank"):
                lora.targets(encoder, settings["lora_rank"])
            if settings["gradient_checkpointing"]:
                encoder.enable_checkpointing()

    def prepare(self) -> None:
        """Embed all pictures, or find that this was done before."""
        _ = self.features
