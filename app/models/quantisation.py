"""Weights in fewer bits: the denoiser's, and those of a language model that reads prompts, as the precision names it.

    float8   stored in eight-bit floats, computed layer by layer in the device's own format (layerwise casting)
    int8     linear layers in eight-bit integers with a scale for each row (torchao)
    int4     linear layers in four-bit integers with a scale for each group of 128 (optimum-quanto, on every device)

The autoencoder is never touched: its errors would be seen as they are. A denoiser is the larger part of a checkpoint by
far; CLIP's text encoders are small and stay as they are, a language model of billions of weights does not.
"""

from collections.abc import Callable, Mapping

import torch
from diffusers.hooks import apply_layerwise_casting

from app.models.device import TorchDevice
from app.models.machine import check_package

REACHED = {"unet", "language_model"}


def quantise(modules: Mapping[str, torch.nn.Module], device: TorchDevice) -> None:
    """Bring the denoiser (`unet`) and the `language_model`, as far as they are given, into the device's precision,
    where that is more than a number format of torch.
    """
    method = METHODS.get(device.precision)
    if method is not None:
        check_package(device.precision)
        for name in REACHED & modules.keys():
            method(modules[name], device.dtype)


def _float8(module: torch.nn.Module, computed_in: torch.dtype) -> None:
    formats = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": computed_in}
    if hasattr(module, "enable_layerwise_casting"):
        module.enable_layerwise_casting(**formats)
    else:
        apply_layerwise_casting(module, skip_modules_pattern=("norm", "embed"), **formats)


def _int8(module: torch.nn.Module, computed_in: torch.dtype) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig())
    module.requires_grad_(False)


def _int4(module: torch.nn.Module, computed_in: torch.dtype) -> None:
    from optimum.quanto import freeze, qint4, quantize

    # Layers whose width is no multiple of the group are left as they are.
    narrow = [name for name, part in module.named_modules() if _is_layer(part) and not _is_grouped(part)]
    quantize(module, weights=qint4, exclude=narrow)
    freeze(module)
    module.requires_grad_(False)


def _is_layer(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear | torch.nn.Conv2d)


def _is_grouped(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear) and part.in_features % 128 == 0


METHODS: dict[str, Callable[[torch.nn.Module, torch.dtype], None]] = {"float8": _float8, "int8": _int8, "int4": _int4}
