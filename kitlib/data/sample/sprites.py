"""Stamps: trees, houses, poles, signs and cars as small pictures in two tints, for the drawn sample.

Every stamp is drawn once with its own random generator, lit from the left, and then reduced to the needed sizes. Its
three planes are premultiplied: the amount of the first tint (leaves, wall, plate, body), of the second (trunk, roof,
text, glass), and the cover of the background.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

VARIANTS = 6
TALLEST = 400  # pixels; nearer things extend beyond the picture


def _foliage(draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: tuple[int, int, int, int], lobes: int) -> None:
    """A crown of overlapping lobes of leaves, each brighter towards the upper left."""
    centre, radii = np.array([box[0] + box[2], box[1] + box[3]]) / 2, np.array([box[2] - box[0], box[3] - box[1]]) / 2
    for lobe in range(lobes):
        angle, out = rng.uniform(0, 2 * np.pi), (0.25 if lobe == 0 else rng.uniform(0.3, 0.52))
        middle, reach = out * np.array([np.cos(angle), np.sin(angle)]), rng.uniform(0.34, 0.48) if lobe else 0.66
        for n, spread, size in ((30, 0.75, 0.3), (260, 1.05, 0.075)):
            angles, far = rng.uniform(0, 2 * np.pi, n), spread * np.sqrt(rng.uniform(0, 1, n))
            unit = np.stack([np.cos(angles), np.sin(angles)], axis=1) * far[:, None]
            shade = np.clip(140 - unit @ [34, 48] - middle @ [30, 45] + rng.normal(0, 20, n), 35, 255).astype(int)
            radius = size * reach * radii.mean() * rng.uniform(0.6, 1.2, n)
            for (x, y), s, r in zip(centre + (middle + reach * unit) * radii, shade, radius, strict=True):
                draw.ellipse((x - r, y - r, x + r, y + r), fill=(s, 0, 0, 255))


def _broadleaf(rng: np.random.Generator, variant: int) -> Image.Image:
    image = Image.new("RGBA", (int(rng.integers(180, 270)), 256))
    draw, middle = ImageDraw.Draw(image), image.width // 2
    draw.polygon([(middle - 9, 256), (middle - 4, 110), (middle + 4, 110), (middle + 8, 256)], fill=(0, 150, 0, 255))
    _foliage(draw, rng, (4, 4, image.width - 4, int(rng.integers(205, 245))), 9)
    return image


def _bush(rng: np.random.Generator, variant: int) -> Image.Image:
    image = Image.new("RGBA", (int(rng.integers(170, 260)), 128))
    _foliage(ImageDraw.Draw(image), rng, (4, 10, image.width - 4, 165), 6)
    return image


def _conifer(rng: np.random.Generator, variant: int) -> Image.Image:
    image = Image.new("RGBA", (int(rng.integers(90, 140)), 256))
    draw, middle = ImageDraw.Draw(image), image.width / 2
    draw.rectangle((middle - 4, 200, middle + 4, 256), fill=(0, 150, 0, 255))
    for down in np.linspace(0.01, 0.92, 70):
        reach = (middle - 4) * (0.06 + 0.94 * down) * rng.uniform(0.7, 1.05)
        for side in rng.uniform(-1, 1, 12):
            shade = int(np.clip(125 - 50 * side + rng.normal(0, 22), 40, 255))
            x, y = middle + side * reach, 250 * down + 6 + 0.35 * abs(side) * reach
            draw.line((middle + 0.2 * side * reach, 250 * down, x, y), fill=(shade, 0, 0, 255), width=5)
    return image


def _palm(rng: np.random.Generator, variant: int) -> Image.Image:
    image = Image.new("RGBA", (190, 256))
    draw, lean, crown = ImageDraw.Draw(image), rng.uniform(-18, 18), rng.integers(62, 80)
    heights = np.linspace(0, 1, 20)
    trunk = np.stack([95 + lean * (heights**2 - 1), 256 - (256 - crown) * heights], axis=1)
    draw.line([(x + lean, y) for x, y in trunk], fill=(0, 190, 0, 255), width=9, joint="curve")
    for angle in rng.permutation(np.linspace(-0.5, np.pi + 0.5, 20)) + rng.normal(0, 0.08, 20):
        length, t = rng.uniform(62, 88), np.linspace(0, 1, 26)
        x, y = 95 + lean + length * np.cos(angle) * t, crown - length * (1.0 * np.sin(angle) * t - 0.55 * t**2)
        shade = int(np.clip(135 - 45 * np.cos(angle) + rng.normal(0, 25), 45, 255))
        for i in range(1, 26):
            for hang in (16 * np.sin(np.pi * t[i]) ** 0.5, -7 * np.sin(np.pi * t[i])):
                draw.line((x[i], y[i], x[i] + 5 * np.cos(angle), y[i] + hang), fill=(shade, 0, 0, 255), width=3)
        draw.line(list(zip(x, y, strict=True)), fill=(min(shade + 30, 255), 0, 0, 255), width=3)
    return image


def _bare(rng: np.random.Generator, variant: int) -> Image.Image:
    image = Image.new("RGBA", (220, 256))
    draw = ImageDraw.Draw(image)
    limbs = [(110.0, 256.0, -np.pi / 2, 70.0, 9.0)]
    while limbs:
        x, y, angle, length, width = limbs.pop()
        end = (x + length * np.cos(angle), y + length * np.sin(angle))
        draw.line((x, y, *end), fill=(0, int(rng.integers(130, 190)), 0, 255), width=max(1, round(width)))
        if length > 7:
            turns = rng.normal((-0.5, 0.05, 0.5), 0.2)
            limbs += [(*end, angle + turn, length * rng.uniform(0.6, 0.8), width * 0.62) for turn in turns]
    return image


def _house(rng: np.random.Generator, variant: int) -> Image.Image:
    storeys, gable = 1 + variant % 2, variant >= 4
    image = Image.new("RGBA", (250, 130 + 40 * storeys))
    draw, eaves, ground = ImageDraw.Draw(image), 62, 130 + 40 * storeys
    draw.rectangle((14, eaves, 236, ground), fill=(215, 0, 0, 255))
    for y in range(eaves, ground, 5):
        draw.line((14, y, 236, y), fill=(200, 0, 0, 255))
    peak = [(125, 4)] if gable else [(45, 14), (205, 14)]
    draw.polygon([(4, eaves), *peak, (246, eaves)], fill=(210, 0, 0, 255) if gable else (0, 190, 0, 255))
    if gable:
        draw.line([(4, eaves), *peak, (246, eaves)], fill=(0, 170, 0, 255), width=11)
    draw.line((6, eaves, 244, eaves), fill=(0, 120, 0, 255), width=4)
    if rng.uniform() < 0.5:
        draw.rectangle((180, 2, 198, 40), fill=(120, 60, 0, 255))
    door = int(rng.integers(90, 140))
    for floor in range(storeys):
        y = ground - 58 - 52 * floor
        for x in (34, 76, 150, 192):
            draw.rectangle((x - 3, y - 3, x + 25, y + 33), fill=(250, 0, 0, 255))
            draw.rectangle((x, y, x + 22, y + 30), fill=(35, 45, 0, 255))
            draw.line((x + 11, y, x + 11, y + 30), fill=(190, 0, 0, 255), width=2)
    draw.rectangle((door, ground - 62, door + 26, ground), fill=(70, 60, 0, 255))
    if variant % 3 == 0:
        draw.rectangle((146, ground - 60, 228, ground), fill=(245, 0, 0, 255))
        for y in range(ground - 50, ground, 14):
            draw.line((146, y, 228, y), fill=(190, 0, 0, 255), width=2)
    return image


def _block(rng: np.random.Generator, variant: int) -> Image.Image:
    """A flat-roofed town building; later variants are taller."""
    floors, bays = 2 + variant, int(rng.integers(3, 7))
    image = Image.new("RGBA", (40 * bays + 20, 46 * floors + 20))
    draw, (width, height) = ImageDraw.Draw(image), image.size
    draw.rectangle((0, 0, width, height), fill=(195, 0, 0, 255))
    draw.rectangle((0, 0, width, 9), fill=(0, 190, 0, 255))
    for bay in range(bays):
        for floor in range(floors - 1):
            x, y, glass = 18 + 40 * bay, 22 + 46 * floor, int(rng.integers(30, 90))
            draw.rectangle((x - 2, y - 2, x + 24, y + 32), fill=(225, 0, 0, 255))
            draw.rectangle((x, y, x + 22, y + 29), fill=(glass // 2, glass, 0, 255))
    draw.rectangle((8, height - 40, width - 8, height), fill=(25, 45, 0, 255))
    draw.rectangle((4, height - 46, width - 4, height - 36), fill=(0, 235, 0, 255))
    for x in range(8, width, 34):
        draw.rectangle((x, height - 40, x + 4, height), fill=(170, 0, 0, 255))
    return image


def _barn(rng: np.random.Generator, variant: int) -> Image.Image:
    image = Image.new("RGBA", (300, 200))
    draw = ImageDraw.Draw(image)
    draw.rectangle((224, 22, 272, 200), fill=(0, 235, 0, 255))
    draw.pieslice((224, -2, 272, 46), 180, 360, fill=(0, 200, 0, 255))
    draw.polygon([(12, 200), (12, 100), (50, 46), (105, 20), (160, 46), (198, 100), (198, 200)], fill=(205, 0, 0, 255))
    draw.line([(6, 106), (48, 46), (105, 16), (162, 46), (204, 106)], fill=(0, 130, 0, 255), width=9)
    draw.rectangle((72, 120, 138, 200), fill=(150, 0, 0, 255), outline=(250, 60, 0, 255), width=4)
    draw.line((72, 120, 138, 200), fill=(250, 60, 0, 255), width=3)
    draw.line((138, 120, 72, 200), fill=(250, 60, 0, 255), width=3)
    return image


def _pole(rng: np.random.Generator, variant: int) -> Image.Image:
    """Utility poles with one or two crossarms, then street lamps."""
    image = Image.new("RGBA", (90, 320))
    draw = ImageDraw.Draw(image)
    draw.rectangle((42, 0, 48, 320), fill=(190, 0, 0, 255))
    draw.rectangle((46, 0, 48, 320), fill=(130, 0, 0, 255))
    if variant < 4:
        for y in (12, 40)[: 1 + variant % 2]:
            draw.rectangle((12, y, 78, y + 5), fill=(170, 0, 0, 255))
            for x in (14, 30, 58, 74):
                draw.rectangle((x, y - 6, x + 3, y), fill=(220, 0, 0, 255))
        if variant >= 2:
            draw.rectangle((49, 60, 62, 92), fill=(0, 200, 0, 255))
    else:
        draw.line((45, 6, 82, 2), fill=(180, 0, 0, 255), width=4)
        draw.rectangle((72, 1, 89, 9), fill=(0, 230, 0, 255))
    return image


def _sign(rng: np.random.Generator, variant: int) -> Image.Image:
    """Route markers: shield, disc, square, diamond, tall plate, house shape."""
    image = Image.new("RGBA", (110, 256))
    draw = ImageDraw.Draw(image)
    draw.rectangle((52, 100, 58, 256), fill=(110, 40, 0, 255))
    shapes = (
        [(8, 12), (55, 2), (102, 12), (98, 66), (55, 106), (12, 66)],
        [(55 + 50 * np.cos(t), 54 + 50 * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 40)],
        [(6, 6), (104, 6), (104, 104), (6, 104)],
        [(55, 0), (109, 54), (55, 108), (1, 54)],
        [(18, 2), (92, 2), (92, 118), (18, 118)],
        [(6, 40), (55, 2), (104, 40), (104, 104), (6, 104)],
    )
    outline = np.array(shapes[variant])
    draw.polygon([tuple(p) for p in outline], fill=(0, 230, 0, 255))
    draw.polygon([tuple(p) for p in outline.mean(0) + 0.86 * (outline - outline.mean(0))], fill=(240, 0, 0, 255))
    for x in (36, 58):
        draw.rectangle((x, 38, x + 15, 74), fill=(0, 230, 0, 255))
        draw.rectangle((x + 5, 46, x + 10, 66), fill=(240, 0, 0, 255))
    return image


def _car(rng: np.random.Generator, variant: int) -> Image.Image:
    """Cars from the side, then from behind with a plate in the second tint."""
    side = variant < 3
    image = Image.new("RGBA", (300, 110) if side else (140, 110))
    draw, width = ImageDraw.Draw(image), image.width
    draw.ellipse((-5, 98, width + 5, 114), fill=(0, 12, 0, 150))
    if side:
        draw.polygon([(10, 60), (70, 52), (105, 14), (200, 12), (240, 50), (290, 60)], fill=(205, 0, 0, 255))
        draw.polygon([(84, 50), (112, 20), (150, 20), (150, 50)], fill=(45, 20, 0, 255))
        draw.polygon([(158, 50), (158, 20), (194, 20), (222, 50)], fill=(45, 20, 0, 255))
        draw.rounded_rectangle((6, 52, 294, 90), 10, fill=(190, 0, 0, 255))
        draw.rectangle((8, 76, 292, 90), fill=(120, 0, 0, 255))
    else:
        draw.polygon([(14, 50), (32, 10), (108, 10), (126, 50)], fill=(180, 0, 0, 255))
        draw.polygon([(26, 46), (40, 16), (100, 16), (114, 46)], fill=(40, 15, 0, 255))
        draw.rounded_rectangle((6, 44, 134, 94), 10, fill=(200, 0, 0, 255))
        draw.rectangle((48, 60, 92, 80), fill=(0, 240, 0, 255))
    for x in (70, 232) if side else (24, 116):
        draw.ellipse((x - 22, 66, x + 22, 110), fill=(8, 18, 0, 255))
        if side:
            draw.ellipse((x - 11, 77, x + 11, 99), fill=(20, 130, 0, 255))
    return image


KINDS = {
    "broadleaf": _broadleaf,
    "conifer": _conifer,
    "palm": _palm,
    "bare": _bare,
    "bush": _bush,
    "house": _house,
    "block": _block,
    "barn": _barn,
    "pole": _pole,
    "sign": _sign,
    "car": _car,
}


@cache
def _picture(kind: str, variant: int) -> Image.Image:
    """A stamp at full size: planes tint one, tint two, cover, premultiplied."""
    rng = np.random.default_rng([list(KINDS).index(kind), variant])
    planes = np.asarray(KINDS[kind](rng, variant), dtype=np.float32)
    planes[..., :2] *= planes[..., 3:] / 255
    return Image.fromarray(planes[..., [0, 1, 3]].round().astype(np.uint8))


@cache
def _at_level(kind: str, variant: int, level: int) -> np.ndarray:
    picture = _picture(kind, variant)
    height = round(1.15**level)
    reduced = picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.BOX)
    return np.ascontiguousarray(np.moveaxis(np.asarray(reduced), -1, 0))


def stamp(kind: str, variant: int, height: float) -> np.ndarray:
    """A stamp of about `height` pixels (the nearest of a series of sizes), uint8 (3, H, W).

    >>> stamp("house", 0, 20).shape
    (3, 19, 28)
    """
    level = round(np.log(min(max(height, 2.0), TALLEST)) / np.log(1.15))
    return _at_level(kind, variant, level)
