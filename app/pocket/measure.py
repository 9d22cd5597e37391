"""Measure a picture of the little world by its own pixels: background, colours, places, outlines, looks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.pocket import portraits
from app.pocket.things import THINGS
from app.pocket.world import COLOURS, Scene, Thing, draw

SIDE = 40  # pixels of a silhouette brought to one size
FOREGROUND_DISTANCE = 48
PLAIN_DISTANCE = 28
SKIN_DISTANCE = 40
SMALLEST_THING = 0.008  # of the picture


@dataclass(frozen=True)
class Found:
    """One thing as the pixels show it: box in pixels (left, top, right, bottom) and its mask in that box."""

    box: tuple[int, int, int, int]
    mask: np.ndarray
    pixels: np.ndarray


def nearest_names(pixels: np.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> np.ndarray:
    """The index of the nearest palette colour of each pixel [..., 3]."""
    table = np.array(list(palette.values()), np.float32)
    return np.argmin(np.square(pixels[..., None, :].astype(np.float32) - table).sum(-1), axis=-1)


def most_common(pixels: np.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> str:
    """The palette colour that most pixels are nearest to."""
    counts = np.bincount(nearest_names(pixels.reshape(-1, 3), palette), minlength=len(palette))
    return list(palette)[int(counts.argmax())]


def background_pixels(image: Image.Image) -> np.ndarray:
    """The outer frame of the picture; its upper half only, for a portrait fills the lower one."""
    array = np.asarray(image)
    height = array.shape[0]
    rim = max(2, height // 24)
    parts = (array[:rim, :], array[: height // 2, :rim], array[: height // 2, -rim:])
    return np.concatenate([part.reshape(-1, 3) for part in parts])


def background_colour(image: Image.Image) -> str:
    return most_common(background_pixels(image), COLOURS)


def foreground(image: Image.Image) -> np.ndarray:
    """[height, width] true where a pixel is not the background's colour."""
    ground = np.median(background_pixels(image).astype(np.float32), axis=0)
    return np.sqrt(np.square(np.asarray(image, np.float32) - ground).sum(-1)) > FOREGROUND_DISTANCE


def find(image: Image.Image, region: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Found | None:
    """What lies in a region (shares of the picture); None where it is empty."""
    width, height = image.size
    left, top, right, bottom = (round(share * side) for share, side in zip(region, (width, height) * 2, strict=True))
    mask = foreground(image)[top:bottom, left:right]
    rows, columns = np.flatnonzero(mask.sum(1) > 1), np.flatnonzero(mask.sum(0) > 1)
    if (
        mask.mean() * (right - left) * (bottom - top) < SMALLEST_THING * width * height
        or not len(rows)
        or not len(columns)
    ):
        return None
    box = (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Found(box, inner, np.asarray(image)[box[1] : box[3], box[0] : box[2]])


def colour_of(found: Found) -> str:
    """The colour of most of a thing's pixels, shades that are no colour of the palette left out."""
    pixels = found.pixels[found.mask].astype(np.float32)
    table = np.array(list(COLOURS.values()), np.float32)
    plain = np.sqrt(np.square(pixels[:, None] - table).sum(-1)).min(-1) < PLAIN_DISTANCE
    return most_common(pixels[plain] if plain.sum() > len(pixels) / 8 else pixels, COLOURS)


def silhouette(found: Found) -> np.ndarray:
    """[SIDE, SIDE] 0 to 1: the mask, centred, its longer side brought to SIDE."""
    height, width = found.mask.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray((found.mask * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(canvas, np.float32) / 255


@functools.cache
def _templates() -> dict[str, np.ndarray]:
    return {name: silhouette(find(draw(Scene("white", (Thing(name, "blue"),))))) for name in THINGS}


def outline_of(found: Found) -> str:
    """The thing whose outline overlaps this one most (intersection over union)."""
    own = silhouette(found)

    def overlap(template: np.ndarray) -> float:
        return float(np.minimum(own, template).sum() / np.maximum(own, template).sum())

    return max(_templates(), key=lambda name: overlap(_templates()[name]))


def regions_of(scene: Scene) -> list[tuple[float, float, float, float]]:
    """Where each of a scene's things is looked for; two things of no said relation lie side by side in either order."""
    halves = {
        None: [(0, 0, 0.5, 1), (0.5, 0, 1, 1)],
        "left of": [(0, 0, 0.5, 1), (0.5, 0, 1, 1)],
        "right of": [(0.5, 0, 1, 1), (0, 0, 0.5, 1)],
        "above": [(0, 0, 1, 0.5), (0, 0.5, 1, 1)],
        "below": [(0, 0.5, 1, 1), (0, 0, 1, 0.5)],
    }
    return halves[scene.relation] if len(scene.things) == 2 else [(0, 0, 1, 1)]


def is_at(found: Found, place: str, size: tuple[int, int]) -> bool:
    """Does the thing's centre lie at the named place?"""
    x = (found.box[0] + found.box[2]) / 2 / size[0]
    y = (found.box[1] + found.box[3]) / 2 / size[1]
    words = place.split()
    wanted_x = "left" if "left" in words else "right" if "right" in words else "middle"
    wanted_y = "top" if "top" in words else "bottom" if "bottom" in words else "middle"
    seen_x = "left" if x < 0.4 else "right" if x > 0.6 else "middle"
    seen_y = "top" if y < 0.4 else "bottom" if y > 0.6 else "middle"
    return (seen_x, seen_y) == (wanted_x, wanted_y)


def is_portrait(image: Image.Image) -> bool:
    """A portrait covers a fifth of the picture and has skin where the face is, whichever way it looks."""
    pixels = _part(image, 0.34, 0.3, 0.66, 0.66).astype(np.float32)
    table = np.array(list(portraits.SKINS.values()), np.float32)
    skin = np.sqrt(np.square(pixels[:, None] - table).sum(-1)).min(-1) < SKIN_DISTANCE
    return bool(foreground(image).mean() > 0.2 and skin.mean() > 0.12)


def _part(image: Image.Image, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    width, height = image.size
    return np.asarray(image)[
        round(top * height) : round(bottom * height), round(left * width) : round(right * width)
    ].reshape(-1, 3)


def skin_of(image: Image.Image) -> str:
    """The skin tone of the middle of the face: between the eyes and down both cheeks."""
    pixels = np.concatenate([_part(image, 0.44, 0.32, 0.56, 0.6), _part(image, 0.3, 0.54, 0.7, 0.62)])
    return most_common(pixels, portraits.SKINS)


def hair_colour_of(image: Image.Image) -> str:
    """The hair colour of the top of the head."""
    return most_common(_part(image, 0.36, 0.14, 0.64, 0.2), portraits.HAIR_COLOURS)


def dark_around_eyes(image: Image.Image) -> float:
    """The share of near-black pixels in the band of the eyes, seen from the front: glasses add to it."""
    return float((_part(image, 0.24, 0.36, 0.76, 0.54).astype(int).sum(-1) < 150).mean())
