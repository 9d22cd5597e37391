"""Lists of values become the wishes of a batch: line by line, or every combination."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.errors import InvalidRequest

Combine = Literal["zip", "product"]


def count_wishes(values: Mapping[str, Sequence[Any]], how: Combine) -> int:
    """How many wishes these lists make, without making them; `InvalidRequest` says what is wrong with the lists."""
    lengths = {name: len(listed) for name, listed in values.items()}
    for name, length in lengths.items():
        if not length:
            raise InvalidRequest(f"{name[:80]}: the list of values is empty.", field=name[:80])
    if how == "product":
        return math.prod(lengths.values())
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name[:40]} {length}" for name, length in lengths.items())
        raise InvalidRequest(f"Lists that are read line by line must be equally long; these are: {told}.")
    return next(iter(lengths.values()), 1)


def combine(request: Mapping[str, Any], values: Mapping[str, Sequence[Any]], how: Combine) -> list[dict[str, Any]]:
    """The request once for each line of the lists (`zip`) or each combination (`product`; the last list turns fastest).

    Without lists it is the request alone. Check `count_wishes` first: a product grows quickly.
    """
    count_wishes(values, how)
    twice = sorted(set(request) & set(values))
    if twice:
        raise InvalidRequest(f"{twice[0][:80]}: stands in `request` and in `values`.", field=twice[0][:80])
    if not values:
        return [dict(request)]
    rows = itertools.product(*values.values()) if how == "product" else zip(*values.values(), strict=True)
    return [{**request, **dict(zip(values, row, strict=True))} for row in rows]
