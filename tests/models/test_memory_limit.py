"""A limit that changes while models stand on the device: what goes, what stays, and what is refused afterwards."""

import pytest

from app.core.model_offload import ModelCache
from app.errors import OutOfMemory
from tests.models.test_model_offload import TenBytes, Weights


def states(cache: ModelCache) -> dict[str, str]:
    return {entry["key"]: entry["state"] for entry in cache.describe()}


def use(cache: ModelCache, device: TenBytes, name: str, size: int) -> None:
    with cache.borrow(name, lambda: Weights(device, name, size), estimate=size):
        pass


def test_a_lower_limit_moves_the_least_recently_used_away_at_once() -> None:
    device = TenBytes()
    cache = ModelCache(device, budget=10, parked_budget=100)
    for name in ("a", "b", "c"):
        use(cache, device, name, 3)
    cache.set_budgets(6, 100)
    assert states(cache) == {"a": "parked", "b": "placed", "c": "placed"}
    cache.set_budgets(3, 100)
    assert states(cache) == {"a": "parked", "b": "parked", "c": "placed"}
    assert device.used == 3


def test_what_is_borrowed_stays_and_counts() -> None:
    device = TenBytes()
    cache = ModelCache(device, budget=10, parked_budget=100)
    use(cache, device, "other", 2)
    with cache.borrow("held", lambda: Weights(device, "held", 5), estimate=5):
        cache.set_budgets(4, 100)
        assert states(cache) == {"held": "placed", "other": "parked"}
        with pytest.raises(OutOfMemory):
            use(cache, device, "more", 1)
    use(cache, device, "more", 1)
    assert states(cache)["held"] == "parked", "given back, it makes room for what fits the limit"


def test_without_a_limit_the_device_alone_decides() -> None:
    device = TenBytes()
    cache = ModelCache(device, budget=3, parked_budget=0)
    with pytest.raises(OutOfMemory):
        use(cache, device, "large", 8)
    cache.set_budgets(None, 100)
    use(cache, device, "large", 8)
    assert states(cache) == {"large": "placed"}
