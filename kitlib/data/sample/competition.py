"""Draw the sample competition, in the files of the real one.

The outlines of states, the 33 states of the competition and the density of its places (density.csv) are real. The
pictures are painted (see `scenery`), as their bottom strip says. The hidden test truth is written too.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import shapely
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError
from kitlib.core.progress import Bar
from kitlib.data.places import DRAWN
from kitlib.data.readers import VIEWS
from kitlib.data.sample import scenery
from kitlib.geo import outlines

log = logging.getLogger(__name__)

TOWNS = 24  # in every state
README = """A drawn sample competition, not photographs.

kaggle_dataset/  the files a competitor gets, in the competition's format; as there, train and test reuse the same
                 file names and sample_ids
test_truth.csv   where the test places are, which a real competition hides
sample.json      the settings it was drawn with

The outlines of states are the Census Bureau's (public domain). Places follow the real competition's density, read off
a published figure. Every picture is painted by kitlib: its landscape follows latitude, longitude, heading, season and
chance. No place in it exists.
"""


def ensure(data: str) -> Path:
    """Find a data set by `paths.find_data`; draw "sample" into data/raw/sample if it is missing."""
    if data != "sample":
        return paths.find_data(data)
    folder = paths.raw_dir() / "sample"
    return paths.find_data(folder if folder.is_dir() else draw(folder))


def draw(folder: str | Path, n_train: int = 1000, n_test: int = 250, size: int = 256, seed: int = 0) -> Path:
    """Draw a sample competition into `folder` and return the folder; the default size takes about half a minute.

    Equal settings give equal files. A folder that holds the same sample is kept, one of other settings is replaced. The
    folder appears when it is complete. Raises KitError for impossible settings, and for a folder that holds anything
    but a sample.
    """
    folder = Path(folder).expanduser().resolve()
    settings = {"n_train": n_train, "n_test": n_test, "size": size, "seed": seed}
    if n_train < 1 or n_test < 1 or seed < 0:
        raise KitError(f"sample: expected counts >= 1 and a seed >= 0; got {n_train}, {n_test} and {seed}")
    if not 32 <= size <= 512 or size % 2:
        raise KitError(f"size: expected an even number of pixels from 32 to 512; got {size}")
    known = folder / "sample.json"
    if known.is_file():
        try:
            if storage.read_json(known) == settings:
                return folder
        except Damaged as error:
            log.warning("%s; the sample is drawn anew", str(error).partition(": expected")[0])
    elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise KitError(f"{folder} holds something other than a drawn sample: give an empty or a new folder")

    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}-drawing-*"):  # left by a drawing that was killed
        if time.time() - stale.stat().st_mtime > 3600:
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-drawing-", dir=folder.parent, ignore_cleanup_errors=True
    ) as beside:
        new = Path(beside) / "new"
        _write(new, settings)
        new.chmod(0o755)
        if folder.is_dir():
            folder.rename(Path(beside) / "old")
        new.rename(folder)
    log.info("drew %d train and %d test places of the sample competition", n_train, n_test)
    return folder


def _write(folder: Path, settings: dict[str, int]) -> None:
    """Write all files of a sample to a new folder."""
    size, seed = settings["size"], settings["seed"]
    inner = folder / "kaggle_dataset"
    train, test = _places(settings["n_train"], settings["n_test"], seed)
    visits = [(inner / "train_images", i) for i in range(len(train))] + [
        (inner / "test_images", i) for i in range(len(test))
    ]
    for images in ("train_images", "test_images"):
        (inner / images).mkdir(parents=True)
    places = pd.concat([train, test], ignore_index=True)
    scenes = scenery.appearances(
        places[["latitude", "longitude"]].to_numpy(), places["state_idx"].to_numpy(), places["urban"].to_numpy(), seed
    )

    def paint(visit: tuple[Path, int], look: SimpleNamespace) -> None:
        images, i = visit
        views = scenery.paint(look, size, np.random.default_rng([seed, 5, images.name == "test_images", i]))
        for name, view in zip(_file_names(i), _label(views), strict=True):
            (images / name).write_bytes(simplejpeg.encode_jpeg(view, quality=88, colorsubsampling="420"))

    # numpy releases the GIL while it paints
    with ThreadPoolExecutor(paths.workers()) as pool, Bar(total=len(scenes), desc="drawing the sample") as progress:
        try:
            for _ in pool.map(paint, visits, scenes):
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

    truth = ["state", "state_idx", "latitude", "longitude"]
    _table(train)[["sample_id", *(f"image_{view}" for view in VIEWS), *truth]].to_csv(
        inner / "train_ground_truth.csv", index=False, float_format="%.6f"
    )
    unanswered = {f"predicted_state_idx_{rank}": -1 for rank in range(1, 6)}
    template = _table(test)[["sample_id", *(f"image_{view}" for view in VIEWS)]]
    template = template.assign(**unanswered, predicted_latitude=np.nan, predicted_longitude=np.nan)
    template.to_csv(inner / "sample_submission.csv", index=False)
    _states()[["state_idx", "state"]].to_csv(inner / "state_mapping.csv", index=False)
    _table(test)[["sample_id", *truth]].to_csv(folder / "test_truth.csv", index=False, float_format="%.6f")
    (folder / "README.txt").write_text(README)
    (folder / "sample.json").write_text(json.dumps(settings) + "\n")


def _file_names(i: int) -> list[str]:
    return [f"img_{i:06d}_{view}.jpg" for view in VIEWS]


def _table(places: pd.DataFrame) -> pd.DataFrame:
    names = pd.DataFrame([_file_names(i) for i in range(len(places))], columns=[f"image_{view}" for view in VIEWS])
    return pd.concat([places.assign(sample_id=range(len(places))), names], axis=1)


@cache
def _label_strip(size: int) -> np.ndarray:
    """The words in the bottom 8 % of every picture, (rows, size, 1), 0 to 1."""
    rows = round(0.08 * size)
    strip = Image.new("L", (1024, round(1024 * rows / size)))
    font = ImageFont.load_default(strip.height * 0.5)
    ImageDraw.Draw(strip).text((1000, strip.height / 2), DRAWN, fill=255, font=font, anchor="rm")
    return np.asarray(strip.resize((size, rows), Image.Resampling.BOX), np.float32)[..., None] / 255


def _label(views: np.ndarray) -> np.ndarray:
    """Mark views (4, H, W, 3) as drawn, where the real pictures have their watermark."""
    words = _label_strip(views.shape[2])
    bottom = views[:, -len(words) :]
    bottom[:] = bottom * 0.8 * (1 - 0.8 * words) + 204 * words
    return views


def _states() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).parent / "states.csv")


@cache
def _ground() -> dict[str, tuple[list[shapely.Geometry], np.ndarray]]:
    """The pieces of each state by the bins of the density, and the share of its places on each.

    A bin may lie in several states. Its count is divided so that every state has its number of places, by iterative
    proportional fitting (Deming and Stephan 1940) from the areas. A state without bins is one piece.
    """
    density, states = pd.read_csv(Path(__file__).parent / "density.csv"), _states()
    shapes = np.array([outlines.state_shapes()[state] for state in states["state"]])
    half = [np.diff(np.unique(density[c])).min() / 2 for c in ("longitude", "latitude")]
    centre = density[["longitude", "latitude"]].to_numpy()
    boxes = shapely.box(*(centre - half).T, *(centre + half).T)
    bins, owners = shapely.STRtree(shapes).query(boxes, predicate="intersects")
    pieces = shapely.intersection(boxes[bins], shapes[owners])
    share = np.zeros((len(boxes), len(shapes)))
    share[bins, owners] = shapely.area(pieces)
    share[share < 1e-4] = 0  # slivers of a square kilometre
    for _ in range(100):
        share *= (density["count"] / share.sum(axis=1).clip(1e-12)).to_numpy()[:, None]
        share *= (states["count"] / share.sum(axis=0).clip(1e-12)).to_numpy()
    ground = {}
    for column, state in enumerate(states["state"]):
        mine = (owners == column) & (share[bins, owners] > 0)
        weights = share[bins[mine], column]
        ground[state] = (list(pieces[mine]), weights / weights.sum()) if mine.any() else ([shapes[column]], np.ones(1))
    return ground


def _within(shape: shapely.Geometry, n: int, rng: np.random.Generator) -> np.ndarray:
    """n uniform points [lat, lon] in a shape."""
    west, south, east, north = shape.bounds
    shapely.prepare(shape)
    points = np.empty((0, 2))
    while len(points) < n:
        tries = np.stack([rng.uniform(south, north, 8 * n), rng.uniform(west, east, 8 * n)], axis=1)
        points = np.concatenate([points, tries[shapely.contains_xy(shape, tries[:, 1], tries[:, 0])]])
    return points[:n]


def _state_places(state: str, n: int, seed: int, state_idx: int) -> pd.DataFrame:
    """n places in a state, with how urban they are: four in five around a town, the others in the country."""
    pieces, weights = _ground()[state]

    def scatter(n: int, rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([_within(p, k, rng) for p, k in zip(pieces, rng.multinomial(n, weights), strict=True)])

    rng = np.random.default_rng([seed, 3, state_idx])  # the towns do not depend on the number of places
    towns = rng.permutation(scatter(TOWNS, rng))
    inhabitants = rng.lognormal(0, 1.0, TOWNS)
    radius_km = 3 + 5 * np.sqrt(inhabitants / inhabitants.max())
    rng = np.random.default_rng([seed, 4, state_idx])
    home = rng.choice(TOWNS, n, p=inhabitants / inhabitants.sum())
    points = rng.permutation(scatter(n, rng))
    settled = rng.uniform(size=n) < 0.8
    away_km = rng.normal(0, 0.7, (n, 2)) * radius_km[home, None]
    stretch = np.stack([np.ones(n), np.cos(np.radians(towns[home, 0]))], axis=1)
    near = towns[home] + away_km / 111.2 / stretch
    inside = shapely.contains_xy(outlines.state_shapes()[state], near[:, 1], near[:, 0])
    points[settled & inside] = near[settled & inside]
    urban = np.where(settled & inside, np.exp(-np.hypot(*away_km.T) / radius_km[home]), rng.uniform(0, 0.12, n))
    urban *= np.clip(0.45 + radius_km[home] / 10, 0, 1)
    return pd.DataFrame({"state": state, "state_idx": state_idx, "urban": urban}).assign(
        latitude=points[:, 0].round(6), longitude=points[:, 1].round(6)
    )


def _places(n_train: int, n_test: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test places, about the same number from every state, shuffled."""
    states = _states()
    rng = np.random.default_rng([seed, 0])
    shares = []
    for n in (n_train, n_test):
        extra = np.isin(np.arange(len(states)), rng.permutation(len(states))[: n % len(states)])
        shares.append(n // len(states) + extra)
    train, test = [], []
    for state, state_idx, k_train, k_test in zip(states["state"], states["state_idx"], *shares, strict=True):
        places = _state_places(state, k_train + k_test, seed, state_idx)
        train.append(places[:k_train])
        test.append(places[k_train:])

    def shuffled(parts: list[pd.DataFrame]) -> pd.DataFrame:
        whole = pd.concat(parts, ignore_index=True)
        return whole.iloc[rng.permutation(len(whole))].reset_index(drop=True)

    return shuffled(train), shuffled(test)
