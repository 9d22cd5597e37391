"""Networks that spandrel knows, small and at random weights, as files."""

import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SwinIR import SwinIR


def write_compact(path, *, seed=0, scale=4, convolutions=3, features=16, prefix="", gain=1.0):
    """SRVGGNetCompact, as Real-ESRGAN publishes it."""
    torch.manual_seed(seed)
    network = Compact(num_in_ch=3, num_out_ch=3, num_feat=features, num_conv=convolutions, upscale=scale)
    return _write(network, path, prefix, gain)


def write_dense(path, *, seed=0, scale=4, blocks=1, gain=1.0):
    """RRDBNet in the names that Real-ESRGAN's releases have."""
    torch.manual_seed(seed)
    network = ESRGAN(num_filters=8, num_blocks=blocks, scale=scale)
    return _write(network, path, "", gain)


def write_swin(path, *, seed=0):
    """SwinIR x2 with windows of eight pixels."""
    torch.manual_seed(seed)
    network = SwinIR(
        img_size=16, embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=8, mlp_ratio=2, upscale=2,
        upsampler="pixelshuffle", resi_connection="1conv",
    )  # fmt: skip
    return _write(network, path, "", 1.0)


def _write(network, path, prefix, gain):
    tensors = {prefix + name: (value * gain).contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path)
    return path
