"""How a checkpoint's weights stand on a device: whole, or in RAM from where they visit the device while they work.

The hooks stand on the shared modules, not on a pipeline: every view of a checkpoint meets the same ones, and whoever
has its turn on the device works alone, so that two jobs never move one weight at once. What must never happen: a layer
that computes with weights of another device. It cannot, because a hook knows its tensors by themselves, as they were
when no addition was worn; an addition's own small tensors stay on the device. The price is that a set of LoRAs is
built with the hooks off, and they go on anew afterwards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.hooks.group_offloading import (
    GroupOffloadingConfig,
    GroupOffloadingHook,
    GroupOffloadingType,
    ModuleGroup,
    _get_group_onload_device,
)
from peft.tuners.tuners_utils import BaseTunerLayer

from app.core.model_offload import Offload, Sizes, recommend

HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
"""The names under which diffusers' group offloading registers its hooks; ours take the first, by which a pipeline finds
the device it works on."""
DENOISER = "unet"
RAM = torch.device("cpu")


class Seat:
    """The place on the device for one component at a time."""

    def __init__(self) -> None:
        self.taken_by: ModuleGroup | None = None

    def take(self, group: ModuleGroup) -> None:
        """Bring this component, after the one that was there has left."""
        if self.taken_by is group:
            return
        self.leave()
        group.onload_()
        self.taken_by = group

    def leave(self) -> None:
        """Send away who is there."""
        if self.taken_by is not None:
            self.taken_by.offload_()
            self.taken_by = None


class SeatedHook(GroupOffloadingHook):
    """Brings its component to the device before it works, and leaves it there until another one needs the seat."""

    def __init__(self, seat: Seat, group: ModuleGroup, config: GroupOffloadingConfig) -> None:
        super().__init__(group, config=config)
        self.seat = seat

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """Nothing moves yet."""
        return module

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Take the seat; the inputs follow."""
        self.seat.take(self.group)
        return send_to_device((args, kwargs), self.group.onload_device)

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        """Stay."""
        return output


class Placement:
    """One checkpoint's components on one device, under a strategy that may be left to `plan`.

    `device` is where they work, `wished` None means whatever fits best, and `denoiser` names the component that is
    streamed.
    """

    def __init__(
        self,
        components: Mapping[str, torch.nn.Module],
        device: torch.device,
        wished: Offload | None = Offload.NONE,
        *,
        denoiser: str = DENOISER,
    ) -> None:
        self.strategy = wished or Offload.NONE
        self._components = dict(components)
        self._device = device
        self._wished = wished
        self._denoiser = denoiser
        self._seat = Seat()
        self._is_placed = False

    @property
    def device_has_own_memory(self) -> bool:
        """Whether what stands on the device takes no RAM."""
        return self._device.type != "cpu"

    def sizes(self) -> Sizes:
        """The bytes of the components and of their largest layers."""
        layers = {name: largest_layer(module) for name, module in self._components.items()}
        return Sizes(
            components={name: weight_bytes(module) for name, module in self._components.items()},
            denoiser=self._denoiser,
            denoiser_layer=layers[self._denoiser],
            layer=max(layers.values()),
        )

    def plan(self, available: int) -> int:
        """Settle the strategy for so much room; answers the bytes that will stand on the device."""
        sizes = self.sizes()
        if self._wished is not None:
            self.strategy = self._wished
        elif self.device_has_own_memory:
            self.strategy = recommend(sizes, available)
        return sizes.on_device(self.strategy)

    def put(self) -> None:
        """Bring the components to the device, or put hooks on them that will."""
        if self.strategy.keeps_weights_in_ram:
            self._hook()
        else:
            for module in self._components.values():
                torch.nn.Module.to(module, self._device)
        vae = self._components.get("vae")
        if vae is not None:
            # A slice is one picture of several: the same result, decoded one after the other.
            vae.use_slicing = self.strategy not in {Offload.NONE, Offload.ATTENTION}
        self._is_placed = True

    def take(self) -> None:
        """Bring every weight to RAM, and leave the modules as they were."""
        self._unhook()
        for module in self._components.values():
            torch.nn.Module.to(module, RAM)
        if "vae" in self._components:
            self._components["vae"].use_slicing = False
        self._is_placed = False

    def change(self, strategy: Offload) -> int:
        """Stand under another strategy from now on; answers the bytes that stand on the device."""
        self.take()
        self.strategy = strategy
        self.put()
        return self.sizes().on_device(strategy)

    def building(self, make: Callable[[], list[Any]]) -> list[Any]:
        """Let `make` build layers around those of the modules, hooks off and formats whole; theirs go to the device."""
        hooked = self._is_placed and self.strategy.keeps_weights_in_ram
        if hooked:
            self._unhook()
        try:
            with whole_formats(self._components.values()):
                places = make()
        finally:
            if hooked:
                self._hook()
        for _, _, layer in places:
            if isinstance(layer, BaseTunerLayer):
                for name, parameter in layer.named_parameters():
                    if not name.startswith("base_layer."):
                        parameter.data = parameter.data.to(self._device)
        return places

    def _hook(self) -> None:
        by_layers = {
            Offload.SEQUENTIAL_CPU: set(self._components),
            Offload.STREAMED: {self._denoiser},
        }.get(self.strategy, set())
        for name, module in self._components.items():
            if name in by_layers:
                apply_group_offloading(
                    module,
                    onload_device=self._device,
                    offload_device=RAM,
                    offload_type="leaf_level",
                    # A CPU has no streams; there the hooks can be proved and gain nothing.
                    use_stream=self.strategy is Offload.STREAMED and self.device_has_own_memory,
                )
            else:
                self._seat_hooks(module)

    def _seat_hooks(self, module: torch.nn.Module) -> None:
        group = ModuleGroup(
            modules=[],
            offload_device=RAM,
            onload_device=self._device,
            offload_leader=module,
            parameters=list(module.parameters()),
            buffers=list(module.buffers()),
        )
        config = GroupOffloadingConfig(
            onload_device=self._device,
            offload_device=RAM,
            offload_type=GroupOffloadingType.BLOCK_LEVEL,
            non_blocking=False,
            record_stream=False,
            low_cpu_mem_usage=False,
        )
        # An autoencoder is entered by `encode` and `decode`, which call its children and not itself.
        doors = list(module.children()) if hasattr(module, "decode") else [module]
        for door in doors:
            hook = SeatedHook(self._seat, group, config)
            HookRegistry.check_if_exists_or_initialize(door).register_hook(hook, HOOKS[0])

    def _unhook(self) -> None:
        self._seat.leave()
        for module in self._components.values():
            for part in module.modules():
                registry = part.__dict__.get("_diffusers_hook")
                if registry is None:
                    continue
                for name in HOOKS:
                    registry.remove_hook(name, recurse=False)
                if not registry.hooks:
                    del part._diffusers_hook
                    if part.__dict__.get("forward") == type(part).forward.__get__(part):
                        del part.forward


class Placed:
    """A model whose `modules` stand as its `placement` says; see `app.core.model_offload.Model`."""

    modules: list[torch.nn.Module]
    placement: Placement
    wardrobe: Any

    @property
    def bytes(self) -> int:
        """The size of all weights."""
        return weight_bytes(*self.modules)

    def plan(self, available: int) -> int:
        """Settle how the weights will stand on a device with so much room; answers the bytes they take there."""
        return self.placement.plan(available)

    def stream(self) -> int | None:
        """Let the denoiser's layers visit the device one by one from now on; the bytes that stand there then, None
        where nothing is gained. Nothing is worn afterwards.
        """
        strategy = self.placement.strategy
        if strategy in {Offload.STREAMED, Offload.SEQUENTIAL_CPU} or not self.placement.device_has_own_memory:
            return None
        self.wardrobe.wear(None)
        return self.placement.change(Offload.STREAMED)


@contextmanager
def whole_formats(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Layers that are stored in fewer bits than they compute in stand in the latter for the block, and lose nothing:
    what is built around them would otherwise be stored in the few bits as well."""
    cast = []
    for module in modules:
        for part in module.modules():
            registry = getattr(part, "_diffusers_hook", None)
            hook = registry.get_hook("layerwise_casting") if registry is not None else None
            if hook is not None:
                cast.append((part, hook))
                part.to(dtype=hook.compute_dtype)
    try:
        yield
    finally:
        for part, hook in cast:
            part.to(dtype=hook.storage_dtype)


def weight_bytes(*modules: torch.nn.Module) -> int:
    """The size of all weights of these modules, each counted once."""
    tensors = {id(tensor): tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]}
    return sum(stored_bytes(tensor) for tensor in tensors.values())


def stored_bytes(tensor: torch.Tensor) -> int:
    """What a tensor takes; a quantised one is made of several plain ones."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(stored_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def largest_layer(module: torch.nn.Module) -> int:
    """The bytes of the module's largest single layer."""
    own = (
        sum(stored_bytes(tensor) for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)])
        for part in module.modules()
    )
    return max(own, default=0)


def working_device(module: Any) -> torch.device:
    """Where a component works, which is not where its weights wait when they are offloaded."""
    try:
        return _get_group_onload_device(module)
    except ValueError:
        return module.device
