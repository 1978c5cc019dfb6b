"""Pictures to the encoder: loose files through PIL, as usual, against the pack; medians of interleaved runs.

    OMP_NUM_THREADS=1 python benchmarks/pictures.py [DATA]

DATA is a competition folder (default: the sample). Ratios are of CPU seconds, so that a busy machine does not bend
them; the last column is what all 329,900 pictures of the competition would take on one quiet core.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kitlib.data import picture_checks, pictures, readers
from kitlib.data.sample import competition as sample

N_PLACES, BATCH, REPEATS, ALL = 128, 32, 5, 329_900


class LooseFiles(Dataset):
    """The usual way: four files a place, each opened by PIL, resized to 336, float32, normalised."""

    def __init__(self, files: list[list[Path]]):
        self.files = files
        self.transform = transforms.Compose(
            [transforms.Resize((336, 336)), transforms.ToTensor(), transforms.Normalize([0.48] * 3, [0.27] * 3)]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int):
        return [self.transform(Image.open(path).convert("RGB")) for path in self.files[i]]


def measure(ways: dict[str, Callable[[], object]], n_pictures: int) -> None:
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.process_time(), time.perf_counter()
            way()
            cpu[name].append(time.process_time() - start[0])
            wall[name].append(time.perf_counter() - start[1])
    first = statistics.median(cpu[next(iter(ways))])
    print(f"{'way':58}{'CPU s':>8}{'wall s':>8}{'ratio':>8}{'a core':>10}{'all':>9}")
    for name in ways:
        seconds = statistics.median(cpu[name])
        rate = n_pictures / seconds
        print(
            f"{name:58}{seconds:8.2f}{statistics.median(wall[name]):8.2f}{first / seconds:7.1f}x{rate:8.0f}/s"
            f"{ALL / rate / 60:6.1f} min"
        )


def main() -> None:
    read = readers.read(sys.argv[1] if len(sys.argv) > 1 else sample.ensure("sample"))
    with TemporaryDirectory() as folder:
        pack = pictures.pack(read, "train", Path(folder))
        rows = np.arange(min(N_PLACES, len(pack.sample_id)))
        names = read.rows("train")[read.image_columns].to_numpy()[rows]
        files = LooseFiles([[read.folder / name for name in place] for place in names])
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]

        def from_files() -> None:
            for _ in DataLoader(files, BATCH):
                pass

        def from_pack() -> None:
            for batch in batches:
                pack.decode(batch)

        def only_decoded() -> None:
            for place in files.files:
                for path in place:
                    np.asarray(Image.open(path).convert("RGB"))

        def checked() -> None:
            for place in files.files:
                for path in place:
                    picture_checks.examine(path.read_bytes())

        measure(
            {
                "loose files, PIL, 336 px, float32, DataLoader": from_files,
                "loose files, PIL, decoded only": only_decoded,
                "the pack, simplejpeg, 256 px uint8": from_pack,
                "the one checking pass that makes the pack": checked,
            },
            len(rows) * len(read.views),
        )


if __name__ == "__main__":
    main()
