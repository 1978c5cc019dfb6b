"""A strip of four seamless 90-degree views, and methods to paint on it.

The camera is 2.5 m above a road. A pixel column is a direction and a pixel below the horizon a point on the ground, so
that the sun, its glow and the shadows are at their true positions in every view. Colours are 0 to 1, lengths metres,
angles radians clockwise from north; `across` is metres to the right of the road's middle. Large arrays are float32,
because the strip is repainted about twenty times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from kitlib.data.sample import sprites

CAMERA_M = 2.5
NOISE = 512  # side of the tiling noise pictures
WAVES = np.arange(1, 90)  # undulations of a ridge on its way round the horizon
SNOW = np.array([0.90, 0.92, 0.96])


@dataclass(frozen=True)
class Light:
    """Sun and air of one visit."""

    sun_height: float
    sun_azimuth: float
    direct: float  # 0 overcast, 1 clear
    cover: float  # share of the sky under cloud
    sight_m: float  # distance at which haze replaces 63 % of a colour
    zenith: np.ndarray
    haze: np.ndarray
    tint: np.ndarray  # colour of the light on the ground


@dataclass(frozen=True)
class Thing:
    """A stamp to be put beside the road."""

    kind: str
    variant: int
    across: float
    along: float
    height: float
    tint: np.ndarray
    tint2: np.ndarray


def mix(a: Any, b: Any, t: Any) -> np.ndarray:
    """Interpolate from a (t = 0) to b (t = 1)."""
    return np.asarray(a) + (np.asarray(b) - np.asarray(a)) * t


def _colour(colour: Any) -> np.ndarray:
    return np.asarray(colour, np.float32)[:, None, None]


@cache
def noise(exponent: float) -> np.ndarray:
    """A tiling noise picture (NOISE, NOISE) of mean 0 and deviation 1; amplitude falls with frequency ** exponent."""
    rng = np.random.default_rng(round(exponent * 1000))
    frequency = np.hypot(np.fft.fftfreq(NOISE)[:, None], np.fft.rfftfreq(NOISE)[None])
    frequency[0, 0] = np.inf
    picture = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(NOISE, NOISE))) / frequency**exponent)
    return (picture / picture.std()).astype(np.float32)


def _textures(exponent: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Eight samples (8, *x.shape) of a noise picture at positions x, y in noise pixels."""
    cells = (np.floor(x).astype(np.int64) % NOISE) * NOISE + np.floor(y).astype(np.int64) % NOISE
    moved = cells + np.arange(8).reshape(8, *[1] * x.ndim) * (NOISE**2 // 8 + 97)
    return noise(exponent).ravel().take(moved % NOISE**2)


@cache
def _camera(size: int) -> SimpleNamespace:
    """The direction and ground point of every pixel of the strip, the same for all places."""
    focal, horizon = size / 2, size // 2
    within = np.arctan((np.arange(size) + 0.5 - focal) / focal)
    azimuth = (within + np.arange(4)[:, None] * np.pi / 2).ravel()
    secant = np.tile(1 / np.cos(within), 4)
    climb = ((horizon - 0.5 - np.arange(horizon)) / focal)[:, None] / secant  # tangent of the elevation
    depth = CAMERA_M * focal / (np.arange(size - horizon) + 0.5)[:, None]
    ground = depth * np.stack([np.sin(azimuth), np.cos(azimuth)])[:, None] * secant  # metres east, metres north
    clouds = np.stack([np.sin(azimuth), np.cos(azimuth)])[:, None] / (climb + 0.08) * 60
    angles = WAVES[:, None] * azimuth
    return SimpleNamespace(
        size=size,
        focal=focal,
        horizon=horizon,
        azimuth=azimuth,
        secant=secant,
        climb=climb.astype(np.float32),
        cosine=(1 / np.sqrt(1 + climb**2)).astype(np.float32),
        fade=np.exp(-3.2 * climb).astype(np.float32),
        depth=depth.astype(np.float32),
        clouds=_textures(1.5, *clouds),
        wisps=_textures(0.7, *clouds),
        fine=_textures(0.6, *(ground * 14)),
        coarse=_textures(1.5, *(ground * 5)),
        slopes=_textures(1.3, *np.meshgrid(np.arange(size) * 2.0, np.arange(4.0 * size), indexing="ij")),
        waves=np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32),
    )


class Strip:
    """The strip being painted, (3, size, 4 * size): north, east, south and west side by side."""

    def __init__(self, size: int, light: Light, heading: float, lane: float) -> None:
        """heading: direction of the road; lane: the road's middle, metres to the right of the camera."""
        self.camera, self.light, self.heading, self.lane = _camera(size), light, heading, lane
        self.canvas = np.empty((3, size, 4 * size), np.float32)
        self.sunward = np.cos(self.camera.azimuth - light.sun_azimuth).astype(np.float32)
        # towards the sun, things show their shaded side and the exposure is lower
        self.gain = 0.92 - float(0.13 * light.direct * np.cos(light.sun_height)) * self.sunward

    def _texture(self, cuts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One of the samples (8, rows, 4 * size), rotated by whole views."""
        return np.roll(cuts[rng.integers(len(cuts))], rng.integers(4) * self.camera.size, axis=1)

    def sky(self, rng: np.random.Generator) -> None:
        """Paint the gradient, clouds, the sun and its glow."""
        camera, light = self.camera, self.light
        sky = self.canvas[:, : camera.horizon]
        np.multiply(_colour(light.haze - light.zenith), camera.fade, out=sky)
        sky += _colour(light.zenith)
        sun_up, sun_out = float(np.sin(light.sun_height)), float(np.cos(light.sun_height))
        toward = camera.cosine * (sun_out * self.sunward + sun_up * camera.climb)
        cloud = self._texture(camera.clouds, rng) + 0.12 * self._texture(camera.wisps, rng)
        cloud = np.clip(0.8 * cloud + (2.7 * light.cover - 1.75), 0, 0.92) * np.minimum(12 * camera.climb, 1)
        white = 0.97 - 0.19 * light.cover + 0.05 * toward - 0.12 * cloud
        sky += (white - sky) * cloud
        glow = 0.38 * np.exp(14 * (toward - 1)) + 0.9 * np.exp(500 * (toward - 1))
        sky += glow * _colour(light.direct * light.tint)

    def hills(self, relief: np.ndarray, tint: np.ndarray, snow_line: float, rng: np.random.Generator) -> None:
        """Paint three ridges, the farthest first; relief (16,) is the height of mountains by direction, 0 to 1."""
        camera, light = self.camera, self.light
        around = np.linspace(0, 2 * np.pi, len(relief) + 1)
        relief = np.interp(camera.azimuth % (2 * np.pi), around, np.append(relief, relief[0])).clip(0, 1.2)
        grain = self._texture(camera.slopes, rng)
        horizon = np.full(4 * camera.size, camera.horizon)
        air = mix(light.haze, light.zenith, 0.4)
        for nearness, height in ((0.30, 0.50), (0.5, 0.33), (0.75, 0.17)):
            rough = rng.normal(size=(2, len(WAVES))) / WAVES ** (1.35 - 0.2 * relief.mean())
            profile = rough.astype(np.float32).ravel() @ camera.waves
            profile /= profile.std()
            climb = height * relief**1.4 * (0.5 + 0.28 * profile).clip(0.05, 1.3) + 0.006
            top = camera.horizon - camera.focal * climb * camera.secant
            line = camera.horizon - camera.focal * snow_line * camera.secant + 0.03 * camera.size * profile
            clear = nearness ** (0.5 + 1000 / light.sight_m)
            for colour, bottom in ((tint, horizon), (SNOW, np.minimum(line, horizon))):
                seen = mix(air[:, None], (colour * light.tint)[:, None] * self.gain, clear)
                self._fill(top, bottom, seen, 0, 0.2 * nearness * grain)

    def _along(self, across: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The columns towards that side of the road; distance of and position along a surface beside the road."""
        u = across + self.lane
        side = np.sin(self.camera.azimuth - self.heading)
        columns = np.flatnonzero(side * np.sign(u) > 1e-6)
        reach = np.minimum(np.abs(u / side[columns]), 500)
        return columns, reach, reach * np.cos(self.camera.azimuth[columns] - self.heading)

    def _row(self, columns: np.ndarray, reach: np.ndarray, height: np.ndarray | float) -> np.ndarray:
        camera = self.camera
        return camera.horizon - camera.focal * camera.secant[columns] / reach * (height - CAMERA_M)

    def wall(self, across: float, low: float, high: np.ndarray | float, tint: np.ndarray, grain: float = 0.0) -> None:
        """Paint a wall along the road from low to high; high may be a profile (512,), one number per metre."""
        camera = self.camera
        columns, reach, along = self._along(across)
        if isinstance(high, np.ndarray):
            high = np.interp(along % len(high), np.arange(len(high)), high)
        bottom, top = self._row(columns, reach, low), self._row(columns, reach, high)
        fog = 1 - np.exp(-reach / self.light.sight_m)
        colours = mix((tint * self.light.tint)[:, None] * self.gain[columns], self.light.haze[:, None], fog)
        rows = noise(0.7)[np.arange(camera.size) * 3 % NOISE]
        for run in np.split(np.arange(len(columns)), np.flatnonzero(np.diff(columns) > 1) + 1):
            texture = grain * rows.take((5 * along[run]).astype(np.int64), axis=1, mode="wrap")
            self._fill(top[run], bottom[run], colours[:, run], columns[run[0]], texture)

    def wire(self, across: float, start: float, span: float, height: float) -> None:
        """Paint a wire that sags 0.8 m between poles `span` apart, one of them at `start`."""
        columns, reach, along = self._along(across)
        part = (along - start) / span % 1
        row = self._row(columns, reach, height - 0.8 * (1 - (2 * part - 1) ** 2)) - 0.5
        for whole in (np.floor(row), np.floor(row) + 1):
            seen = (whole >= 0) & (reach < 150)
            ink = 0.8 * (1 - np.abs(row - whole)[seen]) * np.exp(-reach[seen] / 60)
            self.canvas[:, whole[seen].astype(int), columns[seen]] *= (1 - ink).astype(np.float32)

    def _fill(
        self, top: np.ndarray, bottom: np.ndarray, tint: np.ndarray, first: int, grain: np.ndarray | None
    ) -> None:
        """Fill columns from `first` on between rows top and bottom (columns,) with soft edges; tint (3, columns)."""
        high, low = (int(r) for r in np.clip([np.floor(top.min()), np.ceil(bottom.max())], 0, self.camera.size))
        row = np.arange(high, low, dtype=np.float32)[:, None]
        cover = np.clip(bottom.astype(np.float32) - row, 0, 1) + np.clip(row + 1 - top.astype(np.float32), 0, 1)
        cover = np.maximum(cover - 1, 0)
        tint = tint.astype(np.float32)[:, None]
        if grain is not None:
            tint = tint * (1 + grain[high:low])
        piece = self.canvas[:, high:low, first : first + len(top)]
        piece += (tint - piece) * cover

    def ground(self, road: SimpleNamespace, shade: np.ndarray, rng: np.random.Generator) -> None:
        """Paint grass, soil, crops, the road and its markings, and the shadows of things beside it.

        road: see scenery._road. shade: (2, 1024) heights of things left and right, every quarter of a metre along.
        """
        camera, light = self.camera, self.light
        angle = camera.azimuth - self.heading
        right = (np.sin(angle) * camera.secant).astype(np.float32)
        across = camera.depth * right - np.float32(self.lane)
        along = camera.depth * (np.cos(angle) * camera.secant).astype(np.float32)
        aside = np.abs(across)
        # edges are softened by the metres across that one pixel covers
        sharp = camera.focal / (camera.depth**2 / np.float32(CAMERA_M) * np.abs(right) + camera.depth)
        fine = self._texture(camera.fine, rng) * np.minimum(1, 6 / camera.depth)
        coarse = self._texture(camera.coarse, rng)

        def band(low: float, high: float) -> np.ndarray:
            outer = np.clip((high - aside) * sharp + 0.5, 0, 1)
            return outer if low <= 0 else np.clip((aside - low) * sharp + 0.5, 0, 1) * outer

        wear = np.clip(0.75 + 0.35 * coarse, 0.25, 1)
        dashes = wear * np.where(camera.depth < 25, (along + road.start) % 12 < 3.5, np.float32(0.3))
        layers = [(road.soil, np.clip(0.5 * coarse + 0.3 * fine + road.bare, 0, 1))]
        if road.crop is not None:
            rows = 0.5 + 0.5 * np.sin(across * np.float32(2 * np.pi / 1.5)) * np.minimum(1, 0.4 * sharp)
            layers.append((road.crop, (0.55 + 0.45 * rows) * np.clip(0.5 * aside - (0.5 * road.half + 2.5), 0, 1)))
        layers.append((road.gravel, 0.8 * band(road.half, road.half + 0.9) * (coarse > -0.8)))
        if road.snow > 0:
            layers.append((SNOW, np.clip(2 * road.snow + 0.3 * coarse - 0.4, 0, 1)))
        if road.walk > 0:
            layers.append((np.array([0.64, 0.63, 0.60]), band(road.half + 0.25, road.half + road.walk)))
            layers.append((np.array([0.74, 0.73, 0.71]), band(road.half, road.half + 0.25)))
        layers.append((road.surface, band(0, road.half)))
        layers.append((0.9 * road.surface, band(0.25 * road.half, 0.65 * road.half) * np.clip(0.4 + coarse, 0, 1)))
        if road.line is not None:
            double, colour = road.line
            layers.append((colour, wear * band(0.1, 0.22) if double else dashes * band(0, 0.08)))
        if road.edge:
            layers.append((road.white, wear * band(road.half - 0.4, road.half - 0.26)))
        if road.half > 5:
            layers.append((road.white, dashes * band(road.half / 2 + 0.2, road.half / 2 + 0.33)))
        # from the top layer down, each covers what the layers above leave free
        layers.insert(0, (road.grass, np.ones_like(across)))
        shares, left = np.empty((len(layers), *across.shape), np.float32), np.ones_like(across)
        for share, (_, cover) in zip(shares[::-1], layers[::-1], strict=True):
            np.multiply(left, cover, out=share)
            left -= share
        land = np.tensordot(np.array([colour for colour, _ in layers], np.float32).T, shares, axes=1)

        gain = (1 + 0.07 * fine + 0.05 * coarse) * (1.05 * self.gain)
        if light.direct > 0.05:
            gain *= 1 - float(0.45 * light.direct) * self._shadows(across, along, road.trees, shade)
        land *= gain
        land *= _colour(light.tint)
        land += (_colour(light.haze) - land) * (1 - np.exp(-camera.depth / np.float32(light.sight_m)))
        self.canvas[:, camera.horizon :] = land

    def _shadows(self, across: np.ndarray, along: np.ndarray, trees: float, shade: np.ndarray) -> np.ndarray:
        """The hidden share of the sun at ground pixels: where a ray to the sun passes below the tops at `trees`."""
        slope = float(np.tan(self.light.sun_height))
        toward = float(np.sin(self.light.sun_azimuth - self.heading))
        toward = np.copysign(max(abs(toward), 0.15), toward)
        ahead = float(np.cos(self.light.sun_azimuth - self.heading)) / slope
        hidden = np.zeros_like(across)
        for side, tops in zip((-1, 1), shade.astype(np.float32), strict=True):
            height = (side * trees - across) * np.float32(slope / toward)
            top = tops.take(((along + height * ahead) * 4).astype(np.int32) & (len(tops) - 1))
            hidden = np.maximum(hidden, np.clip((top - height) * 2, 0, 1) * (height > 0))
        return hidden

    def put(self, things: list[Thing]) -> None:
        """Paint things beside the road, the farthest first; those nearer than 4 m, which fill the view, are omitted."""
        camera, light = self.camera, self.light
        across, along, height = np.array([(t.across, t.along, t.height) for t in things]).T
        reach = np.hypot(across + self.lane, along)
        azimuth = np.arctan2(across + self.lane, along) + self.heading
        view = np.floor(azimuth / (np.pi / 2) + 0.5)
        off = azimuth - view * np.pi / 2
        scale = camera.focal / (reach * np.cos(off))
        x = camera.focal * np.tan(off) + camera.focal + (view % 4) * camera.size
        y = camera.horizon + CAMERA_M * scale
        fog = 1 - np.exp(-reach / light.sight_m)
        lit = 0.97 + light.direct * (0.10 - 0.28 * np.cos(azimuth - light.sun_azimuth) * np.cos(light.sun_height))
        flip = np.sin(light.sun_azimuth - azimuth) > 0  # stamps are lit from the left
        seen = (reach > 4) & (height * scale > 1.5)
        for i in np.argsort(-reach)[: len(reach)]:
            if seen[i]:
                thing = things[i]
                planes = sprites.stamp(thing.kind, thing.variant, height[i] * scale[i])[:, :, :: -1 if flip[i] else 1]
                bright = light.tint * (lit[i] * (1 - fog[i]))
                weights = np.stack([thing.tint * bright, thing.tint2 * bright, light.haze * fog[i]], axis=1) / 255
                self._stamp(planes, x[i], y[i], weights.astype(np.float32))

    def _stamp(self, stamp: np.ndarray, x: float, y: float, weights: np.ndarray) -> None:
        """Paint a stamp (3, h, w) with its foot at x, y; weights (3 colours, 3 planes)."""
        size, (tall, wide) = self.camera.size, stamp.shape[1:]
        top, left = round(y) - tall, round(x - wide / 2)
        rows = slice(max(top, 0), min(top + tall, size))
        for start in (left, left - 4 * size, left + 4 * size):  # the strip closes on itself
            first, last = max(start, 0), min(start + wide, 4 * size)
            if first < last and rows.start < rows.stop:
                planes = stamp[:, rows.start - top : rows.stop - top, first - start : last - start].astype(np.float32)
                piece = self.canvas[:, rows, first:last]
                piece *= 1 - planes[2] * np.float32(1 / 255)
                piece += np.tensordot(weights, planes, axes=1)

    def views(self, exposure: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The finished views, uint8 (4, size, size, 3), with colour balance (3,) and some sensor noise."""
        size = self.camera.size
        picture = self.canvas
        picture *= _colour(255 * exposure)
        picture += 2.2 * noise(0.1).take(np.arange(4 * size) + rng.integers(NOISE), axis=1, mode="wrap")[:size]
        views = np.clip(picture, 0, 255, out=picture).astype(np.uint8).reshape(3, size, 4, size)
        return np.ascontiguousarray(views.transpose(2, 1, 3, 0))
