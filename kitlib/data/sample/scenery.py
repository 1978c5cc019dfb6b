"""The appearance of places in the drawn sample: climate and style of a place, and the scene of one visit.

`appearances` computes climate and style of points, smooth in latitude and longitude except for clues that change at
state lines. `paint` paints the four views of a place on some day and hour. All numbers are invented to be plausible and
learnable; only the outlines of states and the density of places are measured.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.data.sample import sprites
from kitlib.data.sample.panorama import NOISE, Light, Strip, Thing, mix, noise

RIM = np.arange(16) * np.pi / 8  # directions of the skyline, clockwise from north
POLES_M = 38.0  # from pole to pole


def _rgb(*hexes: str) -> np.ndarray:
    return np.array([[int(h[i : i + 2], 16) / 255 for i in (1, 3, 5)] for h in hexes])


def _clip(x: Any) -> float:
    return float(min(max(x, 0.0), 1.0))


def _climate(points: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Climate columns and soil colour (N, 3) at points (N, 2): Gaussian kernel averages over climate.csv."""
    table = pd.read_csv(Path(__file__).parent / "climate.csv")
    distance = geo.distance_matrix_km(points, table[["latitude", "longitude"]].to_numpy()).astype(float)
    weight = np.exp((distance.min(axis=1, keepdims=True) ** 2 - distance**2) / (2 * 120**2))
    weight /= weight.sum(axis=1, keepdims=True)
    columns = ["wet", "relief", "trees", "conifer", "cloud", "farm"]
    return pd.DataFrame(weight @ table[columns].to_numpy(), columns=columns), weight @ _rgb(*table["soil"])


def _fourier(points: np.ndarray, n_fields: int, scale_km: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth random fields (N, n_fields) at points (N, 2), about standard normal, correlated within scale_km.

    Source: Rahimi and Recht, Random features for large-scale kernel machines (2007).
    """
    waves = rng.normal(0, geo.EARTH_RADIUS_KM / scale_km, (n_fields, 12, 3))
    phase = rng.uniform(0, 2 * np.pi, (n_fields, 12))
    return np.cos(np.einsum("nd,fwd->nfw", geo.unit_vectors(points), waves) + phase).sum(axis=2) / np.sqrt(6)


def _state_style(state_idx: int, seed: int) -> dict[str, Any]:
    """Clues that change at state lines: route markers, plates, centre lines, poles, guardrails."""
    rng = np.random.default_rng([seed, 2, state_idx])
    paint = _rgb("#f4f4f0", "#1d3f91", "#17653c", "#20211f", "#f0c22e", "#a8262c", "#e8822a", "#6fb4d9")
    plate, text = rng.choice(len(paint), 2, replace=False)
    return {
        "sign": int(rng.integers(sprites.VARIANTS)),
        "plate": paint[plate],
        "text": paint[text],
        "lines": rng.dirichlet([0.6, 0.6, 0.6]),  # shares of double yellow, dashed yellow, dashed white
        "edge": rng.beta(0.7, 0.5),
        "lamps": rng.beta(0.6, 0.9),
        "pole": int(rng.integers(4)),
        "pole_tint": _rgb("#7d6147", "#9a968e", "#5d4a3a", "#b5a58c")[rng.integers(4)],
        "rail": rng.beta(0.5, 1.2),
        "rail_tint": _rgb("#b9bcbd", "#8d5a3c", "#ecebe6")[rng.integers(3)],
    }


def appearances(points: np.ndarray, state_idx: np.ndarray, urban: np.ndarray, seed: int) -> list[SimpleNamespace]:
    """Climate and style of places: points (N, 2) [lat, lon], state_idx (N,), urban (N,) from 0 to 1; N rows."""
    climate, soil = _climate(points)
    rng = np.random.default_rng([seed, 1])
    hues = _fourier(points, 10, 400, rng)
    climate = (climate + 0.05 * _fourier(points, climate.shape[1], 250, rng)).clip(0, 1)
    # the skyline is the relief 0.6 degrees of latitude away
    stretch = 1 / np.cos(np.radians(points[:, :1]))
    around = np.stack([points[:, :1] + 0.6 * np.cos(RIM), points[:, 1:] + 0.6 * np.sin(RIM) * stretch], axis=2)
    rim = _climate(around.reshape(-1, 2))[0]["relief"].to_numpy().reshape(-1, len(RIM))
    climate["warm"] = 24 - 0.85 * (np.maximum(points[:, 0], 22) - 25) - 5 * climate["relief"]  # degrees Celsius
    climate["latitude"], climate["urban"] = points[:, 0], urban
    styles = {idx: _state_style(idx, seed) for idx in np.unique(state_idx).tolist()}
    return [
        SimpleNamespace(**climate.loc[i], soil=soil[i], hues=hues[i], rim=rim[i], **styles[int(state_idx[i])])
        for i in range(len(points))
    ]


def sun(latitude: float, day: float, hour: float) -> tuple[float, float]:
    """Elevation and azimuth (clockwise from north) of the sun in radians, at a day of the year and a solar hour.

    Source: Cooper's declination (1969) and the horizontal coordinates of spherical astronomy.

    >>> [round(float(np.degrees(x))) for x in sun(40.0, 172, 12)]
    [73, 180]
    """
    tilt = np.radians(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    phi, turn = np.radians(latitude), np.radians(15 * (hour - 12))
    height = np.arcsin(np.sin(phi) * np.sin(tilt) + np.cos(phi) * np.cos(tilt) * np.cos(turn))
    north = np.cos(phi) * np.sin(tilt) - np.sin(phi) * np.cos(tilt) * np.cos(turn)
    return float(height), float(np.arctan2(-np.cos(tilt) * np.sin(turn), north) % (2 * np.pi))


def _season(place: SimpleNamespace, rng: np.random.Generator) -> SimpleNamespace:
    """Day, temperature and their effect on leaves; winter visits are rarer, as in street photographs."""
    day = float(np.clip(rng.normal(205, 56), 20, 345))
    swing = 4 + 0.4 * max(place.latitude - 20, 0)
    celsius = place.warm + swing * np.sin(2 * np.pi * (day - 110) / 365) + rng.normal(0, 2)
    return SimpleNamespace(
        day=day,
        celsius=celsius,
        autumn=_clip(1 - abs(day - 290) / 28) * _clip((place.latitude - 33) / 6),
        leafless=_clip((4 - celsius) / 4) if not 120 < day < 270 else 0.0,
        snow=_clip(-celsius / 6) * rng.uniform(0.3, 1),
    )


def _light(place: SimpleNamespace, season: SimpleNamespace, rng: np.random.Generator) -> Light:
    """Sun, clouds and haze: hazy and pale in humid air, deep blue in dry air."""
    sun_height, sun_azimuth = sun(place.latitude, season.day, rng.uniform(9, 16.5))
    sun_height = max(sun_height, 0.12)
    cover = _clip(rng.normal(place.cloud, 0.22))
    humid = _clip(place.wet * (0.3 + place.warm / 30) + rng.normal(0, 0.12))
    overcast, low = _clip((cover - 0.55) / 0.3), np.exp(-sun_height / 0.25)
    zenith = mix([0.20, 0.41, 0.77], [0.44, 0.62, 0.83], humid) + 0.035 * place.hues[0] * np.array([-1, 0, 0.6])
    rim = mix(mix([0.72, 0.82, 0.91], [0.84, 0.86, 0.86], humid), [0.93, 0.82, 0.70], 0.5 * low * (1 - overcast))
    return Light(
        sun_height=sun_height,
        sun_azimuth=sun_azimuth,
        direct=(1 - overcast) * _clip(1.1 - 0.4 * cover),
        cover=cover,
        sight_m=float(np.exp(rng.normal(8.6 - 1.9 * humid, 0.3))),
        zenith=mix(zenith, [0.60, 0.64, 0.69], 0.9 * overcast),
        haze=mix(rim, [0.80, 0.82, 0.84], 0.8 * overcast),
        tint=mix([1.0, 0.985, 0.96], [1.02, 0.90, 0.74], low * (1 - overcast)),
    )


def _road(place: SimpleNamespace, season: SimpleNamespace, rng: np.random.Generator) -> SimpleNamespace:
    """The road under the camera and the land beside it, for Strip.ground; crop and line may be None."""
    hue, wet = place.hues, _clip(place.wet + rng.normal(0, 0.1))
    green = _clip(wet * np.clip((season.celsius + 4) / 14, 0.25, 1) + 0.10 * hue[1] + rng.normal(0, 0.08))
    town = rng.uniform() < 1.4 * (place.urban - 0.45)
    unpaved = rng.uniform() < 0.16 * (1 - place.urban) * (1.3 - place.wet)
    wide = not unpaved and rng.uniform() < 0.6 * place.urban
    half = float(rng.choice([6.4, 8.5]) if wide else rng.uniform(2.9, 3.9))
    grey = np.clip(0.45 + 0.05 * hue[3] + 0.10 * (0.5 - wet) + rng.normal(0, 0.06), 0.25, 0.65)
    crop = None
    if rng.uniform() < place.farm * (1 - place.urban):
        ripe = _clip((season.day - 215) / 50 + 0.3 * hue[5])
        crop = mix([0.30, 0.47, 0.15], [0.76, 0.65, 0.36], ripe) if 130 < season.day < 300 else place.soil
    yellow, white = np.array([0.86, 0.68, 0.22]), np.array([0.90, 0.90, 0.88])
    lines = [(True, yellow), (False, yellow), (False, white)]
    line = lines[rng.choice(3, p=mix([0.5, 0.35, 0.15], place.lines, 0.65))]
    return SimpleNamespace(
        grass=mix([0.69, 0.61, 0.40], [0.33, 0.48, 0.19], green) * (1 + 0.04 * hue[2]),
        soil=place.soil,
        bare=0.75 * (0.62 - green) + rng.normal(0, 0.12),
        gravel=mix(place.soil, [0.62, 0.60, 0.57], 0.45),
        snow=season.snow,
        crop=crop,
        town=town,
        walk=6.5 if town else 2.2 * (rng.uniform() < place.urban * 1.2 - 0.1),
        half=half,
        surface=mix(place.soil, 0.7, 0.15) if unpaved else grey * (1 + 0.045 * hue[4] * np.array([1, 0.2, -1])),
        line=None if unpaved or rng.uniform() < 0.2 else line,
        edge=not unpaved and rng.uniform() < 0.2 + 0.6 * place.edge,
        start=float(rng.uniform(0, 12)),
        white=white,
        trees=half + 7,
    )


def _plants(
    place: SimpleNamespace, season: SimpleNamespace, road: SimpleNamespace, rng: np.random.Generator
) -> list[Thing]:
    """Trees and bushes on both sides of the road."""
    hue = place.hues
    palm = _clip((place.warm - 17) / 5) * np.clip(0.6 + 0.2 * hue[6], 0.2, 0.9) * (1.2 - place.conifer)
    conifer = _clip(place.conifer + 0.1 * hue[7] + rng.normal(0, 0.12))
    density = _clip(place.trees + rng.normal(0, 0.15)) * (1 if road.crop is None else 0.4)
    n_trees = rng.poisson(2 + 130 * density**1.6 * (1 - 0.6 * place.urban))
    n_bushes = rng.poisson(4 + 70 * _clip(0.45 - place.wet + rng.normal(0, 0.08)) * (1 - 0.7 * place.urban))
    leaf = mix([0.45, 0.46, 0.22], [0.31, 0.49, 0.18], place.wet) * (1 + 0.07 * hue[8])
    leaf = leaf * (1 + 0.06 * hue[2] * np.array([1, 0, -1]))
    needle = mix([0.20, 0.31, 0.16], [0.16, 0.32, 0.25], _clip(0.5 + 0.4 * hue[9]))
    sage = mix([0.56, 0.55, 0.38], leaf * 1.1, _clip(place.wet + 0.1))
    turned = _rgb("#d98a24", "#c8501f", "#e0b02f", "#a83a22") * 0.9
    tall = 1 + 0.12 * hue[0] + 0.25 * (place.wet - 0.6)
    things = []
    for i in range(n_trees + n_bushes):
        bark = np.array([0.42, 0.35, 0.28])
        draw = rng.uniform(size=5)
        gap = 3.5 - 9 * np.log(draw[0])  # exponential: most stand near the road
        if i >= n_trees:
            kind, height, tint, gap = "bush", 0.4 + 0.9 * draw[1], sage, 1.5 - 14 * np.log(draw[0])
        elif draw[2] < palm:
            kind, height, tint, bark = "palm", 6 + 7 * draw[1], np.array([0.42, 0.55, 0.26]), bark * 1.5
        elif draw[2] < palm + (1 - palm) * conifer:
            kind, height, tint = "conifer", (7 + 13 * draw[1]) * tall, needle
        elif draw[3] < season.leafless:
            kind, height, tint = "bare", (6 + 7 * draw[1]) * tall, leaf
        else:
            tint = turned[rng.integers(4)] if draw[4] < season.autumn else leaf
            kind, height = "broadleaf", (5 + 8 * draw[1]) * tall
        across = rng.choice([-1, 1]) * (road.half + gap + 0.15 * height)
        variant, jitter = int(rng.integers(sprites.VARIANTS)), 1.25 * (1 + rng.normal(0, 0.07, 3))
        things.append(Thing(kind, variant, across, rng.uniform(-110, 110), height, tint * jitter, bark * jitter))
    return things


def _buildings(place: SimpleNamespace, road: SimpleNamespace, rng: np.random.Generator) -> list[Thing]:
    """Town blocks, houses or a barn, by how urban the place is; wall colours change slowly over the map."""
    walls = _rgb("#e9e4d6", "#b9573f", "#d8c39a", "#a9b4b8", "#f2f0ea", "#8f9a7c", "#c98e5f", "#d9cfc4")
    roofs = _rgb("#54504d", "#6e4a3d", "#8a8580", "#b0604a")
    taste = np.exp(0.9 * place.hues[: len(walls)])
    things = []
    for side in (-1, 1):
        along = rng.uniform(-75, -60)
        while along < 70 and place.urban > 0.05:
            tint = walls[rng.choice(len(walls), p=taste / taste.sum())] * rng.uniform(0.85, 1.1)
            roof = roofs[int(np.clip(rng.normal(1.5 + place.hues[6], 0.8), 0, 3))]
            if road.town:
                variant, gap, step = int(np.clip(rng.normal(4 * place.urban - 1, 1.2), 0, 5)), 7.0, rng.uniform(15, 21)
                kind, height, share = "block", 3.5 * (variant + 2), 0.8
            else:
                variant, gap, step = int(rng.integers(sprites.VARIANTS)), rng.uniform(9, 17), rng.uniform(18, 32)
                kind, height, share = "house", 7.2 if variant % 2 else 5.2, 1.3 * place.urban
            if rng.uniform() < share:
                things.append(Thing(kind, variant, side * (road.half + gap), along, height, tint, roof * 1.2))
            along += step
    if rng.uniform() < 0.5 * place.farm * (1 - place.urban):
        red = _rgb("#9c2f26", "#e8e6df", "#8f8a80")[rng.choice(3, p=[0.6, 0.25, 0.15])]
        across = rng.choice([-1, 1]) * rng.uniform(25, 60)
        things.append(Thing("barn", 0, across, rng.uniform(-60, 60), 10, red, np.full(3, 0.8)))
    return things


def _furniture(place: SimpleNamespace, road: SimpleNamespace, rng: np.random.Generator) -> list[Thing]:
    """Poles, route markers and cars, which carry the clues of a state."""
    things, side = [], rng.choice([-1, 1])
    if rng.uniform() < 0.75:
        lamps = rng.uniform() < place.lamps * (0.4 + 0.6 * place.urban)
        variant = 4 if lamps else place.pole if rng.uniform() < 0.8 else int(rng.integers(4))
        tint = np.full(3, 0.62) if lamps else place.pole_tint * rng.uniform(0.85, 1.15)
        first, across = rng.uniform(-100, -62), side * (road.half + 2.6)
        things += [Thing("pole", variant, across, first + POLES_M * i, 9, tint, np.full(3, 0.75)) for i in range(6)]
    for _ in range(rng.poisson(0.9)):
        across, along = rng.choice([-1, 1], 2) * (road.half + rng.uniform(1, 2.2), rng.uniform(5, 18))
        things.append(Thing("sign", place.sign, across, along, rng.uniform(2.6, 3.3), place.plate, place.text))
    paints = _rgb("#d9dadb", "#20242b", "#8d9196", "#8e1f22", "#23406e", "#5c5a50", "#f0efeb")
    for _ in range(rng.poisson(0.4 + 1.6 * place.urban)):
        tint, (near, ahead) = paints[rng.integers(len(paints))], rng.choice([-1, 1], 2)
        if rng.uniform() < 0.5:  # driving
            things.append(Thing("car", 3, near * road.half / 2, ahead * rng.uniform(8, 45), 1.5, tint, place.plate))
        else:
            things.append(Thing("car", 0, near * (road.half + 1), ahead * rng.uniform(2, 22), 1.45, tint, place.plate))
    return things


def _shade(things: list[Thing], road: SimpleNamespace) -> np.ndarray:
    """Heights (2, 1024) of shading things left and right of the road, every quarter of a metre along it."""
    along, shade = np.arange(1024) / 4, np.zeros((2, 1024))
    widths = {"conifer": 0.2, "palm": 0.2, "broadleaf": 0.4, "house": 0.8, "block": 0.5, "barn": 0.7}
    for thing in things:
        if thing.kind in widths and abs(thing.across) < road.half + 20:
            off = (along - thing.along + 128) % 256 - 128  # the profile repeats every 256 m
            crown = thing.height * np.sqrt(np.clip(1 - (off / (widths[thing.kind] * thing.height)) ** 2, 0, 1))
            side = int(thing.across > 0)
            shade[side] = np.maximum(shade[side], crown)
    return shade


def _woods(strip: Strip, place: SimpleNamespace, wood: np.ndarray, rng: np.random.Generator) -> None:
    """Paint the edges of woods on both sides, higher and closer with more trees."""
    for side in (-1, 1):
        for far, closed in ((130, 0.1), (60, 0.35), (24, 0.65)):
            line = noise(0.9)[rng.integers(NOISE)] + (0.3 + 0.5 * place.conifer) * noise(0.2)[rng.integers(NOISE)]
            level = min(14 * (place.trees - closed) + rng.normal(0, 2), 10)
            if level > -3:
                strip.wall(side * far, 0, np.maximum(level + 1.8 * line, 0), wood * (1.05 - far / 900), grain=0.2)


def paint(place: SimpleNamespace, size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint a place by `appearances`: views north, east, south, west (4, size, size, 3) uint8; size is even, to 512."""
    season = _season(place, rng)
    light = _light(place, season, rng)
    road = _road(place, season, rng)
    on_the_grid = rng.uniform() < 0.85 - 0.8 * place.relief
    heading = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.04) if on_the_grid else rng.uniform(0, 2 * np.pi)
    strip = Strip(size, light, float(heading), lane=-road.half / 2)
    plants = _plants(place, season, road, rng)
    things = plants + _buildings(place, road, rng)
    wood = np.mean([thing.tint for thing in plants if thing.kind != "bush"] or [road.grass], axis=0) * 0.6
    strip.sky(rng)
    slopes = mix(mix(place.soil, road.grass, 0.35), wood, _clip(1.2 * place.trees))
    strip.hills(place.rim, slopes, 0.13 + 0.012 * season.celsius, rng)
    strip.ground(road, _shade(things, road), rng)
    _woods(strip, place, wood, rng)
    things += _furniture(place, road, rng)
    if rng.uniform() < 0.6 * place.rail:
        strip.wall(rng.choice([-1, 1]) * (road.half + 1.6), 0.52, 0.72, place.rail_tint)
    strip.put(things)
    poles = [thing for thing in things if thing.kind == "pole" and thing.variant < 4]
    for wire in range(3 if poles else 0):
        strip.wire(poles[0].across, poles[0].along, POLES_M, 8.3 - 0.35 * wire)
    return strip.views(np.exp(rng.normal(0, 0.05)) * (1 + rng.normal(0, 0.015, 3)), rng)
