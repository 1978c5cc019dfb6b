"""A frozen encoder over pictures, and heads on it: the usual way against the pack and the cache; one interleaved run.

    OMP_NUM_THREADS=1 python benchmarks/embedding.py [ENCODER [DATA]]

ENCODER is any of `encoders.load` (default: tiny), DATA a competition folder (default: the sample). The usual way opens
each file with PIL, transforms it as the encoder's own processor does, and runs the encoder in float32; its frozen phase
runs the encoder in every epoch. Ratios are of CPU seconds, so that a busy machine does not bend them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from kitlib.data import pictures, readers
from kitlib.data.pictures import Pack
from kitlib.data.sample import competition as sample
from kitlib.vision import embeddings, encoders
from kitlib.vision.encoders import Encoder
from kitlib.vision.preprocess import Preprocess

N_PLACES, BATCH, REPEATS, EPOCHS = 64, 8, 3, 5
CPU = torch.device("cpu")


def processor(preprocess: Preprocess) -> Callable[[Image.Image], torch.Tensor]:
    """The encoder's own preprocessing as timm and torchvision write it."""
    size = [preprocess.resize] * 2 if preprocess.squash else preprocess.resize
    return v2.Compose(
        [
            v2.Resize(size, interpolation=v2.InterpolationMode(preprocess.interpolation)),
            v2.CenterCrop(preprocess.size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocess.mean, preprocess.std),
        ]
    )


def usual(files: np.ndarray, encoder: Encoder) -> torch.Tensor:
    """Features (N, V, D) of files (N, V): PIL, float32 pixels, batches, float32 encoder."""
    transform, done = processor(encoder.preprocess), []
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in batch.flat])
        with torch.inference_mode():
            done.append(encoder.backbone(pixels).view(*batch.shape, -1))
    return torch.cat(done).clone()


def ours(pack: Pack, encoder: Encoder) -> torch.Tensor:
    """The same through `embed`, from a cold cache."""
    with TemporaryDirectory() as folder:
        made = embeddings.embed(pack, encoder, Path(folder), batch_size=BATCH, device=CPU)
        return torch.from_numpy(np.asarray(made.features, dtype=np.float32))


def epoch(features: torch.Tensor, labels: torch.Tensor, head: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in torch.arange(len(features)).split(BATCH):
        loss = nn.functional.cross_entropy(head(features[batch].mean(dim=1)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def frozen_phase(features: Callable[[], torch.Tensor], labels: torch.Tensor, cached: bool) -> None:
    made = features()
    head = nn.Linear(made.shape[-1], int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for i in range(EPOCHS):
        made = made if cached or i == 0 else features()
        epoch(made, labels, head, optimizer)


def measure(what: str, ways: dict[str, Callable[[], object]]) -> None:
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.process_time(), time.perf_counter()
            way()
            cpu[name].append(time.process_time() - start[0])
            wall[name].append(time.perf_counter() - start[1])
    first = statistics.median(cpu[next(iter(ways))])
    print(f"{what:58}{'CPU s':>8}{'wall s':>8}{'ratio':>8}")
    for name in ways:
        seconds = statistics.median(cpu[name])
        print(f"  {name:56}{seconds:8.2f}{statistics.median(wall[name]):8.2f}{first / seconds:7.1f}x")


def first_places(pack: Pack, n: int) -> Pack:
    """The first `n` places of a pack."""
    arrays = {field.name: getattr(pack, field.name) for field in fields(pack)}
    cut: dict[str, Any] = {name: array[:n] for name, array in arrays.items() if isinstance(array, np.ndarray)}
    return replace(pack, **cut)


def main() -> None:
    torch.manual_seed(0)
    encoder = encoders.load(sys.argv[1] if len(sys.argv) > 1 else "tiny")
    read = readers.read(sys.argv[2] if len(sys.argv) > 2 else sample.ensure("sample"))
    names = read.rows("train")[read.image_columns].to_numpy()[:N_PLACES]
    files = np.array([[read.folder / name for name in place] for place in names], dtype=object)
    labels = torch.tensor(read.state_position("train")[:N_PLACES])
    with TemporaryDirectory() as folder:
        pack = first_places(pictures.pack(read, "train", Path(folder)), N_PLACES)
        features = {"usual": lambda: usual(files, encoder), "ours": lambda: ours(pack, encoder)}
        alike = nn.functional.cosine_similarity(features["usual"](), features["ours"](), dim=-1).min()
        print(f"{encoder.name} at {encoder.preprocess.size} px, {encoder.gflop:.3g} GFLOP; {files.size} pictures")
        print(f"least cosine similarity between the usual features of a picture and ours: {alike:.4f}")
        measure(
            "embedding",
            {
                "loose files, PIL, float32 pixels, float32 encoder": features["usual"],
                "pack, uint8 to the device, best number type, cache": features["ours"],
            },
        )
        measure(
            f"frozen phase of {EPOCHS} epochs",
            {
                "the encoder in every epoch, the usual way": lambda: frozen_phase(features["usual"], labels, False),
                "the encoder in every epoch, our way": lambda: frozen_phase(features["ours"], labels, False),
                "once into the cache": lambda: frozen_phase(features["ours"], labels, True),
            },
        )


if __name__ == "__main__":
    main()
