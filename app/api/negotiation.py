"""Which form of an answer a caller wants: the Accept header against what is on offer."""

from collections.abc import Sequence

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "jpg": "image/jpeg", "webp": "image/webp"}


def preferred(accept: str, offers: Sequence[str]) -> str | None:
    """The offer with the highest quality, the earlier one on a tie; the first offer when nothing is said."""
    if not accept.strip():
        return offers[0]
    ranges = [parse_range(part) for part in accept.split(",")[:50]]
    best, best_quality = None, 0.0
    for offer in offers:
        fitting = [(specificity, quality) for name, quality in ranges if (specificity := fits(name, offer))]
        quality = max(fitting)[1] if fitting else 0.0
        if quality > best_quality:
            best, best_quality = offer, quality
    return best


def parse_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                quality = 0.0
    return name, quality


def fits(name: str, offer: str) -> int:
    """How closely a media range names an offer: 3 exactly, 2 its family, 1 anything, 0 not."""
    if name == offer:
        return 3
    if name == f"{offer.partition('/')[0]}/*":
        return 2
    return 1 if name == "*/*" else 0
