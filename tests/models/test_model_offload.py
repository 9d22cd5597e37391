"""Every rule of the model cache, on a device of ten bytes. No torch."""

import threading

import pytest

from app.core.model_offload import ModelCache
from app.errors import OutOfMemory


class TenBytes:
    """A device that holds ten bytes and says when they do not suffice."""

    keeps_parked = True

    def __init__(self):
        self.capacity = 10
        self.used = 0
        self.emptied = 0
        self.log = []

    def free_bytes(self):
        return self.capacity - self.used

    def empty_cache(self):
        self.emptied += 1

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)


class Weights:
    """A model of a few bytes that counts where it is."""

    def __init__(self, device, name, size, *, refuse=0):
        self.device, self.name, self.bytes = device, name, size
        self.on_device = False
        self.refuse = refuse

    def __del__(self):
        if self.on_device:
            self.device.used -= self.bytes

    def plan(self, available):
        return self.bytes

    def place(self):
        self.device.log.append(f"place {self.name}")
        if self.refuse:
            self.refuse -= 1
            raise MemoryError("no room after all")
        assert not self.on_device
        assert self.device.used + self.bytes <= self.device.capacity, "the policy placed more than the device holds"
        self.device.used += self.bytes
        self.on_device = True

    def park(self):
        self.device.log.append(f"park {self.name}")
        assert self.on_device
        self.device.used -= self.bytes
        self.on_device = False


@pytest.fixture
def device():
    return TenBytes()


def loader(device, name, size, **more):
    def load():
        device.log.append(f"load {name}")
        return Weights(device, name, size, **more)

    return load


def use(cache, device, name, size, **more):
    with cache.borrow(name, loader(device, name, size, **more), estimate=size) as model:
        assert model.on_device
        return model


def states(cache):
    return {entry["key"]: entry["state"] for entry in cache.describe()}


def test_a_placed_model_is_neither_loaded_nor_moved_again(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    first = use(cache, device, "a", 4)
    assert use(cache, device, "a", 4) is first
    assert device.log == ["load a", "place a"]


def test_the_least_recently_used_makes_room(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    for name in ("a", "b"):
        use(cache, device, name, 4)
    use(cache, device, "a", 4)
    use(cache, device, "c", 4)
    assert states(cache) == {"a": "placed", "b": "parked", "c": "placed"}
    assert device.log[-3:] == ["load c", "park b", "place c"]


def test_a_parked_model_comes_back_without_loading(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    use(cache, device, "a", 8)
    use(cache, device, "b", 8)
    use(cache, device, "a", 8)
    assert device.log.count("load a") == 1
    assert states(cache) == {"a": "placed", "b": "parked"}


def test_parked_models_beyond_their_budget_are_dropped_oldest_first(device):
    cache = ModelCache(device, budget=10, parked_budget=8)
    for name in ("a", "b", "c", "d"):
        use(cache, device, name, 4 if name != "d" else 10)
    assert states(cache) == {"b": "parked", "c": "parked", "d": "placed"}
    use(cache, device, "a", 4)
    assert device.log.count("load a") == 2


def test_a_model_larger_than_the_parked_budget_is_dropped_instead(device):
    cache = ModelCache(device, budget=10, parked_budget=5)
    use(cache, device, "a", 6)
    use(cache, device, "b", 6)
    assert states(cache) == {"b": "placed"}
    assert "park a" not in device.log


def test_a_borrowed_model_is_never_moved(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    with cache.borrow("a", loader(device, "a", 6), estimate=6) as borrowed:
        with (
            pytest.raises(OutOfMemory, match=r"6 bytes; 4 bytes are there for it beside 6 bytes"),
            cache.borrow("b", loader(device, "b", 6), estimate=6),
        ):
            pytest.fail("both were placed")
        assert borrowed.on_device
        use(cache, device, "c", 4)
    use(cache, device, "b", 6)
    assert states(cache)["b"] == "placed"


def test_two_borrowed_models_that_fit_stand_together(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    with (
        cache.borrow("a", loader(device, "a", 6), estimate=6),
        cache.borrow("b", loader(device, "b", 4), estimate=4),
    ):
        assert states(cache) == {"a": "placed", "b": "placed"}
        assert [entry["borrowed"] for entry in cache.describe()] == [True, True]
    assert not any(entry["borrowed"] for entry in cache.describe())


def test_a_model_larger_than_everything_is_refused_and_leaves_the_cache_usable(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    use(cache, device, "a", 4)
    with pytest.raises(OutOfMemory) as refused:
        use(cache, device, "huge", 11)
    assert refused.value.details == {"needed": 11, "available": 10}
    assert "huge" not in states(cache)
    use(cache, device, "a", 4)


def test_an_estimate_gives_way_to_the_real_size(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    use(cache, device, "a", 5)
    with cache.borrow("b", loader(device, "b", 7), estimate=2):
        assert states(cache) == {"a": "parked", "b": "placed"}
    assert {entry["key"]: entry["bytes"] for entry in cache.describe()} == {"a": 5, "b": 7}
    with cache.borrow("c", loader(device, "c", 3), estimate=50):
        assert states(cache)["b"] == "placed"


def test_without_a_budget_the_device_is_asked(device):
    cache = ModelCache(device, parked_budget=100)
    use(cache, device, "a", 6)
    device.used += 3  # something else took room
    use(cache, device, "b", 4)
    assert states(cache) == {"a": "parked", "b": "placed"}


def test_running_out_while_placing_parks_the_others_and_tries_once_more(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    use(cache, device, "a", 3)
    use(cache, device, "b", 3, refuse=1)
    assert device.log == ["load a", "place a", "load b", "place b", "park a", "place b"]
    with pytest.raises(OutOfMemory, match="even after the other models were moved away"):
        use(cache, device, "c", 3, refuse=2)
    assert "c" not in states(cache)


def test_a_failed_load_leaves_nothing_and_may_be_tried_again(device):
    cache = ModelCache(device, budget=10, parked_budget=100)

    def broken():
        raise ValueError("broken file")

    with pytest.raises(ValueError, match="broken file"), cache.borrow("a", broken, estimate=4):
        pass
    assert cache.describe() == []
    use(cache, device, "a", 4)


def test_an_error_inside_the_block_gives_the_model_back(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    with pytest.raises(KeyError), cache.borrow("a", loader(device, "a", 8), estimate=8):
        raise KeyError("inside")
    use(cache, device, "b", 8)
    assert states(cache) == {"a": "parked", "b": "placed"}


def test_on_a_cpu_making_room_means_dropping_before_loading(device):
    device.keeps_parked = False
    cache = ModelCache(device, budget=10, parked_budget=100)
    use(cache, device, "a", 6)
    use(cache, device, "b", 6)
    assert states(cache) == {"b": "placed"}
    assert device.log == ["load a", "place a", "load b", "place b"]


def test_clear_and_keep_only_spare_what_is_borrowed(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    use(cache, device, "old", 3)
    with cache.borrow("a", loader(device, "a", 3), estimate=3):
        cache.keep_only(lambda key: key != "old")
        assert states(cache) == {"a": "placed"}
        cache.clear()
        assert states(cache) == {"a": "placed"}
    cache.clear()
    assert cache.describe() == []


def test_borrowers_in_many_threads_load_once_and_never_exceed_the_device(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    failures, lock = [], threading.Lock()

    def work(name, size):
        try:
            for _ in range(30):
                try:
                    with cache.borrow(name, loader(device, name, size), estimate=size) as model:
                        if not model.on_device:
                            raise AssertionError(f"{name} was taken away while borrowed")
                except OutOfMemory:
                    continue  # the others were all borrowed just then: a legal answer
        except Exception as error:
            with lock:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(name, size)) for name, size in
               [("a", 3), ("a", 3), ("b", 3), ("c", 4), ("d", 5), ("d", 5)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert all(device.log.count(f"load {name}") == 1 for name in "abcd")
    assert not any(entry["borrowed"] for entry in cache.describe())


def test_describing_does_not_wait_for_a_load(device):
    cache = ModelCache(device, budget=10, parked_budget=100)
    loading, go_on = threading.Event(), threading.Event()

    def slow():
        loading.set()
        assert go_on.wait(10)
        return Weights(device, "slow", 2)

    thread = threading.Thread(target=lambda: cache.borrow("slow", slow, estimate=2).__enter__())
    thread.start()
    assert loading.wait(10)
    assert states(cache) == {"slow": "gone"}
    go_on.set()
    thread.join(10)
    assert states(cache) == {"slow": "placed"}
