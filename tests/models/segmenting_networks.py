"""SAM, SAM 2 and LaMa at random weights, as folders and files of their published layouts."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig, SamConfig, SamModel


def tiny_sam() -> SamModel:
    """SAM for 64 pixels, in 32-bit numbers."""
    config = SamConfig(
        vision_config={
            "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8,
            "mlp_dim": 64, "initializer_range": 0.02,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_depth": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    return SamModel(config).eval()


def tiny_sam2() -> Sam2Model:
    """SAM 2 for 128 pixels, in 32-bit numbers."""
    backbone = Sam2HieraDetConfig(
        hidden_size=12, image_size=[128, 128], num_attention_heads=1, blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[12, 24, 48, 96], num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 4], global_attention_blocks=[3],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[96, 48, 24, 12],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_hidden_size=32,
    )  # fmt: skip
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "iou_head_depth": 2,
            "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    return Sam2Model(config).eval()


def write_lama(path: Path, prefix: str = "model.") -> Path:
    """LaMa's published shape, 51 million random weights: 204 MB."""
    from spandrel.architectures.LaMa import LaMa

    torch.manual_seed(0)
    tensors = LaMa(in_nc=4, out_nc=3).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{prefix}{name.removeprefix('model.')}": tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path
