"""Arithmetic of sizes: multiples that a model asks for, areas that it works well at, steps that a strength leaves."""

import math

from app.errors import InvalidRequest, TooLarge

Size = tuple[int, int]

LARGEST_WORK = 4096 * 4096
"""The most pixels that a model is asked to make at once."""

LARGEST_RESULT = 64_000_000
"""The most pixels of a result of which a model makes a part."""


LARGEST_ENLARGED = 89_000_000
"""The most pixels of a picture that was made larger; what reads pictures begins to doubt them above that."""

LONGEST_SIDE = 16_383
"""The longest side of a picture that was made larger; WebP ends there."""


def round_up(side: float, multiple: int) -> int:
    """The smallest multiple that is not less than `side` (a float's dust is forgiven)."""
    return max(multiple, math.ceil(side / multiple - 1e-6) * multiple)


def round_near(side: float, multiple: int) -> int:
    """The nearest multiple, at least one."""
    return max(multiple, round(side / multiple) * multiple)


def within_area(size: Size, area: int) -> Size:
    """The size itself where it has no more than `area` pixels; else the largest of its shape that has not more."""
    width, height = size
    if width * height <= area:
        return size
    scale = math.sqrt(area / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def of_area(size: Size, area: int, multiple: int) -> Size:
    """A size of this shape with about `area` pixels, both sides multiples of `multiple`."""
    width, height = size
    scale = math.sqrt(area / (width * height))
    return round_near(width * scale, multiple), round_near(height * scale, multiple)


def require_a_step(num_inference_steps: int, strength: float) -> None:
    """`InvalidRequest` when this strength, counted as diffusers does, leaves no step to take."""
    if int(num_inference_steps * strength) < 1:
        raise InvalidRequest(
            f"strength {strength:g} of {num_inference_steps} steps leaves no step to take: "
            f"raise strength to {math.ceil(100 / num_inference_steps) / 100:g} or the number of steps.",
            field="strength",
        )


def whole_strength(num_inference_steps: int) -> float:
    """The strength that makes a part wholly anew: 0.99, or 1 where 0.99 would leave out more than a tenth of the steps.

    Just below 1, diffusers adds the noise to what was there instead of starting from noise alone, which inpainting
    checkpoints answer with sharper pictures; of a few steps, however, it leaves one out, and none of one.
    """
    return 0.99 if int(num_inference_steps * 0.99) >= 0.9 * num_inference_steps else 1.0


def lost_strength(num_inference_steps: int, strength: float) -> list[str]:
    """A note where whole steps, counted as diffusers does, give a strength that is more than 0.1 below the wish."""
    taken = int(num_inference_steps * strength)
    if strength - taken / num_inference_steps <= 0.1:
        return []
    return [
        f"Of {num_inference_steps} steps strength {strength:g} leaves {taken}, which is a strength of "
        f"{taken / num_inference_steps:.2g}; more steps come closer."
    ]


def largest_area(default_size: Size) -> int:
    """The most pixels that a model works well at: four times as many as it was trained at."""
    return 4 * default_size[0] * default_size[1]


def times(size: Size, scale: float) -> Size:
    """The size made larger."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def require_large_result(size: Size) -> None:
    """`InvalidRequest` where a picture that is made larger would go beyond the limits: its scale is what is wrong."""
    if size[0] * size[1] > LARGEST_ENLARGED:
        raise InvalidRequest(
            f"The picture would be {size[0]}x{size[1]}; at most {LARGEST_ENLARGED:,} pixels are made.",
            field="scale",
            size=list(size),
        )
    if max(size) > LONGEST_SIDE:
        raise InvalidRequest(
            f"The picture would be {size[0]}x{size[1]}; a side has at most {LONGEST_SIDE:,} pixels.",
            field="scale",
            size=list(size),
        )


def require_pixels(size: Size, limit: int) -> None:
    """`TooLarge` when this size has more pixels than the limit."""
    if size[0] * size[1] > limit:
        raise TooLarge(f"The picture would be {size[0]}x{size[1]}; at most {limit:,} pixels are made.")
