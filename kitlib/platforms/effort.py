"""How long a plan takes on a GPU: a rough estimate from the work of its encoders, before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from kitlib.core import paths
from kitlib.platforms import jobs
from kitlib.training import options

MIN_HOURS = 0.25  # of a plan besides the encoder: tables, figures, the start of a container
FOLD_HOURS = 0.1  # heads, gallery and guesses of a fold
PICTURES, VIT_L_GFLOP, VIT_L_SIZE, BLOCKS = 329_900, 382.0, 336, 24  # the competition; StreetCLIP's encoder
T4_TFLOPS = 24  # of a vision transformer, as in modal_prices.json
BASIS = f"an estimate for the competition's {PICTURES:,} pictures, every encoder taken for a ViT-L"


def hours(plan: str, given: Mapping[str, str], tflops: float) -> tuple[float, str]:
    """The hours of a plan at a speed of all GPUs together, and "; without …" naming runs that it cannot estimate."""
    petaflop, folds, unknown = 0.0, 0, []
    embedded: set[tuple[str, int, str]] = set()  # encoder, size, crop and side
    for run in jobs.runs_of(plan, given, preset_only=True):
        config = asdict(run.config)
        n_folds = len(jobs.folds_of(run))
        folds += n_folds
        if run.family == "vlm":
            unknown.append(run.name)
            continue
        size, mirror = config["image_size"] or VIT_L_SIZE, 1 + config["mirror"]
        pass_over = PICTURES * VIT_L_GFLOP * (size / VIT_L_SIZE) ** 2 / 1e6
        frozen = 1 if options.learns(config) else mirror
        seen = [f"{crop}{side}" for crop in ("", *options.crop_names(config["crops"])) for side in range(frozen)]
        wanted = {(name, size, each) for name in paths.joined(config["encoder"]) for each in seen}
        wanted = {each for each in wanted if not each[0].startswith("tiny")}
        petaflop += pass_over * len(wanted - embedded)
        embedded |= wanted
        epochs = config.get("finetune_epochs", config["epochs"] if config.get("finetune") else 0) if wanted else 0
        blocks = config.get("finetune_blocks", -1)
        share = 1 if blocks < 0 else min(1.0, blocks / BLOCKS)
        petaflop += n_folds * pass_over * bool(epochs) * (0.8 * epochs * (1 + 2 * share) + 0.4 * mirror)
    left_out = f"; without {', '.join(unknown)}, whose time depends on the replies" if unknown else ""
    return petaflop * 1000 / tflops / 3600 + MIN_HOURS + FOLD_HOURS * folds, left_out
