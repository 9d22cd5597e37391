"""What Qwen-Image-Edit's weights take of a device, computed: the published networks on the meta device, no byte of them
loaded.

Counted are weights alone; what a picture takes beside them while it is drawn is not. How few bits a format needs for a
layer is what `app.models.quantisation` makes of it, which the suite proves on a small network.
"""

from collections.abc import Iterator

import diffusers
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from app.core.model_offload import Offload, Sizes
from app.models.catalog_qwen import QWEN
from benchmarks.rows import Row

LANGUAGE_MODEL = {
    "text_config": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
"""Qwen2.5-VL 7B as its config.json has it; the other two have diffusers' own defaults."""
FORMATS = ("bfloat16", "float8", "int8", "int4")
GROUP = 128
KEPT_BY_FLOAT8 = ("norm", "pos_embed", "embed_tokens", "proj_out")
"""In the names of layers that stay as they are."""


def full_size() -> dict[str, torch.nn.Module]:
    """The three components at full size, without their numbers."""
    with torch.device("meta"):
        return {
            "text_encoder": Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**LANGUAGE_MODEL)).to(torch.bfloat16),
            "transformer": diffusers.QwenImageTransformer2DModel().to(torch.bfloat16),
            "vae": diffusers.AutoencoderKLQwenImage().to(torch.bfloat16),
        }


def reached(components: dict[str, torch.nn.Module]) -> list[torch.nn.Module]:
    """What a format of fewer bits is applied to."""
    return [components["transformer"], components["text_encoder"].model.language_model]


def bytes_of(module: torch.nn.Module, precision: str, few: list[torch.nn.Module]) -> int:
    """A component's weights in a format that acts on the modules in `few`."""
    inside = {id(part): name for one in few for name, part in one.named_modules()}
    return sum(layer_bytes(part, precision if id(part) in inside else "", inside.get(id(part), ""))
               for part in module.modules())  # fmt: skip


def layer_bytes(layer: torch.nn.Module, precision: str, name: str) -> int:
    """One layer's own weights."""
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    plain = sum(tensor.numel() * tensor.element_size() for tensor in own)
    if not isinstance(layer, torch.nn.Linear):
        return plain
    count, width = layer.weight.numel(), layer.weight.element_size()
    if precision == "float8" and not any(part in name for part in KEPT_BY_FLOAT8):
        return sum(tensor.numel() for tensor in own)
    if precision == "int8":
        # A scale and a zero point for each row.
        return plain - count * width + count + layer.out_features * 5
    if precision == "int4" and layer.in_features % GROUP == 0:
        # Half a byte each, a scale and a shift for each group, and two numbers for what comes in and goes out.
        return plain - count * width + count // 2 + 2 * width * count // GROUP + 2 * width
    return plain


def sizes_in(precision: str, components: dict[str, torch.nn.Module]) -> Sizes:
    """As `Placement.sizes` would tell them."""
    few = reached(components)
    names = {id(part): name for one in few for name, part in one.named_modules()}

    def largest(module: torch.nn.Module) -> int:
        return max(
            layer_bytes(part, precision if id(part) in names else "", names.get(id(part), ""))
            for part in module.modules()
        )

    layers = {name: largest(module) for name, module in components.items()}
    return Sizes(
        {name: bytes_of(module, precision, few) for name, module in components.items()},
        "transformer",
        layers["transformer"],
        max(layers.values()),
    )


def computed(rounds: int) -> Iterator[Row]:
    """Each precision under each way to stand on a device; GGUF files as large as they are published."""
    components = full_size()
    plain = sizes_in("bfloat16", components)
    for precision in FORMATS:
        yield _row(f"Qwen-Image-Edit, {precision}", sizes_in(precision, components))
    for row in QWEN:
        if row.options.get("format") == "gguf":
            few = sizes_in("int4", components).components | {"transformer": row.bytes}
            layer = plain.denoiser_layer * row.bytes // plain.components["transformer"]
            yield _row(f"{row.title}, language model in int4", Sizes(few, "transformer", layer, plain.layer))


def _row(what: str, sizes: Sizes) -> Row:
    told = {way: sizes.on_device(Offload(way)) for way in ("none", "model_cpu", "streamed", "sequential_cpu")}
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in sizes.components.items())
    ways = ", ".join(f"{way} {size / 1e9:.1f} GB" for way, size in told.items())
    return f"{what}: weights on the device, computed on the meta device", ways, f"GB of each: {parts}"
