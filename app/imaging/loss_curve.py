"""The loss of a training as a picture, and how it stands in one look: the curve above the last samples."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

GROUND = (52, 57, 66)
"""Quiet beside a light page and on a dark one."""
LINES = (78, 84, 95)
WORDS = (190, 196, 205)
EACH = (104, 116, 134)
SMOOTH = (130, 190, 255)
BORDER = 36
SMOOTHED_OVER = 20


def smoothed(losses: Sequence[float]) -> list[float]:
    """A running mean: single steps of a diffusion training differ by their noise more than by what was learned."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean += (loss - mean) / min(number, SMOOTHED_OVER)
        found.append(mean)
    return found


def loss_curve(losses: Sequence[float], steps: int, size: tuple[int, int] = (640, 280)) -> Image.Image:
    """Each step's loss and the running mean over all `steps`, scaled so that single peaks hide nothing."""
    width, height = size
    sheet = Image.new("RGB", (width * 2, height * 2), GROUND)
    pencil = ImageDraw.Draw(sheet)
    left, top, right, bottom = BORDER * 2 + 24, 28, width * 2 - 28, height * 2 - BORDER * 2
    highest = max(float(np.percentile(losses, 98)), 1e-6) * 1.1 if losses else 1.0
    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        pencil.line((left, y, right, y), fill=LINES, width=2)
        pencil.text((left - 12, y), f"{highest * part / 4:.3g}", fill=WORDS, font_size=22, anchor="rm")
    for part in (0, 0.5, 1):
        x = left + (right - left) * part
        pencil.text((x, bottom + 14), str(round(steps * part)), fill=WORDS, font_size=22, anchor="ma")

    def place(number: int, loss: float) -> tuple[float, float]:
        across = (number + 1) / max(steps, 1)
        return left + (right - left) * across, bottom - (bottom - top) * min(loss / highest, 1.0)

    for number, loss in enumerate(losses):
        x, y = place(number, loss)
        pencil.ellipse((x - 2, y - 2, x + 2, y + 2), fill=EACH)
    mean = [place(number, loss) for number, loss in enumerate(smoothed(losses))]
    if len(mean) > 1:
        pencil.line(mean, fill=SMOOTH, width=4, joint="curve")
    return sheet.resize(size, Image.Resampling.LANCZOS)


def training_picture(curve: Image.Image, samples: Sequence[Image.Image]) -> Image.Image:
    """The curve, and below it the samples in a row of its width."""
    if not samples:
        return curve
    side = curve.width // len(samples)
    small = [image.resize((side, max(1, round(image.height * side / image.width)))) for image in samples]
    sheet = Image.new("RGB", (curve.width, curve.height + max(image.height for image in small)), GROUND)
    sheet.paste(curve)
    for number, image in enumerate(small):
        sheet.paste(image, (number * side, curve.height))
    return sheet
