"""The networks that look at faces: small ones, in the shapes in which insightface, facexlib and timm expect theirs."""

from __future__ import annotations

import torch
from facexlib.parsing.parsenet import ParseNet
from timm.models.eva import Eva
from torch import nn

EMBEDDING = 512
POOLED = 768
IMAGE_SIZE = 112  # of the image encoder
PATCH = 16
HEAD_DIM = 32


def convolution(inner: int, outer: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer), nn.ReLU()
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            convolution(width, width), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.relu(states + self.layers(states))


class Trunk(nn.Module):
    """A picture of `size` pixels to a vector; every place keeps channels of its own, for geometry is where things lie."""

    def __init__(self, size: int, widths: tuple[int, ...], outer: int, narrow: int = 24, kernel: int = 5):
        super().__init__()
        layers: list[nn.Module] = [convolution(3, widths[0], kernel, 2)]
        for inner, width in zip(widths, widths[1:], strict=False):
            layers += [convolution(inner, width, 3, 2), Residual(width)]
        layers += [convolution(widths[-1], narrow, 1), nn.Flatten()]
        self.layers = nn.Sequential(*layers)
        places = size // 2 ** len(widths)
        self.out = nn.Linear(narrow * places * places, outer)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(pictures))


class Landmarks(nn.Module):
    """[n, 3, 192, 192] to [n, 3309] as insightface's 1k3d68: the last 204 numbers are 68 points, the rest is empty."""

    def __init__(self):
        super().__init__()
        self.shrink = nn.AvgPool2d(2)
        self.trunk = Trunk(96, (12, 24, 40, 64), 204, narrow=20)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        points = self.trunk(self.shrink(pictures))
        return torch.cat([points.new_zeros(1, 3309 - 204).expand(points.shape[0], -1), points], 1)


def build_parsing() -> ParseNet:
    """facexlib's ParseNet, narrow: any size that four halvings leave whole, to 19 classes."""
    return ParseNet(in_size=512, out_size=512, min_feat_size=32, base_ch=8, parsing_ch=19, res_depth=2, ch_range=[8, 32])


def build_image_encoder(width: int = 64, depth: int = 6) -> Eva:
    """EVA02-CLIP's visual tower, small."""
    return Eva(
        img_size=IMAGE_SIZE,
        patch_size=PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=width // HEAD_DIM,
        mlp_ratio=4 * 2 / 3,
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
        num_classes=POOLED,
        global_pool="token",
    )


class Detector(nn.Module):
    """[n, 3, height, width], whole multiples of 64, to SCRFD's nine outputs for strides 8, 16, 32 with two anchors.

    In the order in which insightface reads them: scores [n, places, 1], distances of the box's sides [n, places, 4]
    and of the five points [n, places, 10], in strides from the place.
    """

    STRIDES = (8, 16, 32)
    ANCHORS = 2

    def __init__(self, widths: tuple[int, ...] = (12, 24, 40, 48), head: int = 32):
        super().__init__()
        self.shrink = nn.AvgPool2d(4)
        self.enter = convolution(3, widths[0])
        self.eighth = convolution(widths[0], widths[1], 3, 2)
        self.sixteenth = nn.Sequential(convolution(widths[1], widths[2], 3, 2), Residual(widths[2]))
        self.thirtysecond = nn.Sequential(convolution(widths[2], widths[3], 3, 2), Residual(widths[3]))
        self.around = nn.Sequential(
            convolution(widths[3], widths[3], 3, 2), Residual(widths[3]), Residual(widths[3]), Residual(widths[3])
        )
        self.sides = nn.ModuleList(nn.Conv2d(width, head, 1) for width in (*widths[1:], widths[3]))
        self.heads = nn.ModuleList(
            nn.Sequential(convolution(head, head), nn.Conv2d(head, self.ANCHORS * 15, 1)) for _ in self.STRIDES
        )
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        eighth = self.eighth(self.enter(self.shrink(pictures)))
        sixteenth = self.sixteenth(eighth)
        thirtysecond = self.thirtysecond(sixteenth)
        state = self.sides[3](self.around(thirtysecond))
        found = []
        for level, states in ((2, thirtysecond), (1, sixteenth), (0, eighth)):
            state = self.sides[level](states) + self.grow(state)
            found.append(self.heads[level](state))
        scores, boxes, points = [], [], []
        for out in reversed(found):
            rows = out.permute(0, 2, 3, 1).reshape(out.shape[0], -1, 15)
            scores.append(rows[..., :1].sigmoid())
            boxes.append(rows[..., 1:5] * 4)
            points.append(rows[..., 5:] * 4)
        return (*scores, *boxes, *points)
