"""Face networks of the published shapes at random weights, as files."""

import torch
from safetensors.torch import save_file
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel.architectures.RestoreFormer import RestoreFormer


def write_gfpgan(path, *, prefix="params_ema.", seed=0):
    """GFPGAN v1.3 and v1.4: 512 pixels, the clean architecture with twice the channels; noise that is seen."""
    torch.manual_seed(seed)
    network = GFPGAN(
        out_size=512, num_style_feat=512, channel_multiplier=2, fix_decoder=False, num_mlp=8,
        input_is_latent=True, different_w=True, narrow=1, sft_half=True,
    )  # fmt: skip
    tensors = network.state_dict()
    for name, value in tensors.items():
        if name.startswith("stylegan_decoder") and name.endswith(".weight") and value.numel() == 1:
            value.fill_(0.1)  # how much noise a layer takes: as it is initialised, none
    save_file({prefix + name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def write_restoreformer(path, *, seed=0):
    """RestoreFormer in its own names, with fewer channels."""
    torch.manual_seed(seed)
    network = RestoreFormer(
        n_embed=64, embed_dim=32, ch=32, out_ch=3, ch_mult=(1, 1, 1, 1, 1, 1), num_res_blocks=1,
        attn_resolutions=(16,), dropout=0.0, in_channels=3, resolution=512, z_channels=32, double_z=False,
        enable_mid=True, head_size=8,
    )  # fmt: skip
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path
