"""The networks that look at faces: small ones, in the shapes in which insightface, facexlib and timm expect theirs."""

from __future__ import annotations

import math

import torch
from facexlib.parsing.parsenet import ParseNet
from timm.models.eva import Eva
from torch import nn

EMBEDDING = 512
POOLED = 768
IMAGE_SIZE = 112  # of the image encoder
PATCH = 16
HEAD_DIM = 32
PARSING_SIDE = 128
SPREAD = 0.7  # of a point's map while it is taught, in places
SHARPNESS = 10  # of the maps' softmax: from 1, points take several times as long to become exact


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


class Standardise(nn.BatchNorm1d):
    """Numbers [n, inner] with mean 0 and deviation 1; in words that ONNX's exporter takes for any n."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        if self.training:
            return super().forward(numbers)
        return (numbers - self.running_mean) * (self.running_var + self.eps).rsqrt()


def head_of(inner: int, middle: int, outer: int) -> nn.Sequential:
    """From where things are to what that means. What is told is made as wide as everything else first: a nose moves
    by parts of a pixel, and says as much as a head that moves by ten."""
    return nn.Sequential(
        Standardise(inner, affine=False),
        nn.Linear(inner, middle), nn.ReLU(), nn.Linear(middle, middle), nn.ReLU(), nn.Linear(middle, outer),
    )  # fmt: skip


def places_of(side: int) -> torch.Tensor:
    """[side * side, 2]: the middles of a map's places, rows after one another, -1 to 1."""
    middles = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack([middles.repeat(side), middles.repeat_interleave(side)], -1)


def means_of(maps: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The mean place of each map, [n, points, 2]; maps [n, points, places] are logarithms, up to a constant."""
    return maps.softmax(-1) @ places


def misplaced(maps: torch.Tensor, points: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """How far the first maps are from points [n, k, 2] of -1 to 1: as likelihoods, and in their means.

    Means alone are content with a wide map whose middle is about right; which place it is, the likelihood teaches.
    """
    maps, side = maps[:, : points.shape[1]], math.isqrt(len(places))
    rows = places[::side, 1]
    across, down = (
        (-((points[..., axis, None] - rows) ** 2) / (2 * (SPREAD * 2 / side) ** 2)).softmax(-1) for axis in (0, 1)
    )
    wanted = (down[..., None] * across[..., None, :]).flatten(-2)
    unlikely = (maps.logsumexp(-1) - (maps * wanted).sum(-1)).mean()
    return unlikely + 20 * (means_of(maps, places) - points).abs().mean()


class PointReader(nn.Module):
    """A picture of `size` pixels to points, and to channels of the coarsest map.

    Each of POINTS maps is made a point by the mean of its places, weighted by the softmax of the map: so a part of a
    pixel counts, and geometry is read off where things lie. The first 68 points are trained to be those of the face.
    """

    POINTS = 80

    def __init__(self, size: int, widths: tuple[int, ...] = (16, 24, 48, 64)):
        super().__init__()
        self.enter = convolution(3, widths[0], 5, 2)
        self.quarter = nn.Sequential(convolution(widths[0], widths[1], 3, 2), Residual(widths[1]))
        self.eighth = nn.Sequential(convolution(widths[1], widths[2], 3, 2), Residual(widths[2]))
        self.sixteenth = nn.Sequential(convolution(widths[2], widths[3], 3, 2), Residual(widths[3]))
        self.narrow = nn.Sequential(convolution(widths[3], 12, 1), nn.Flatten())
        self.up = nn.Conv2d(widths[3], widths[2], 1)
        self.up_again = nn.Conv2d(widths[2], 32, 1)
        self.side = nn.Conv2d(widths[1], 32, 1)
        self.maps = nn.Sequential(nn.ReLU(), convolution(32, 32), nn.Conv2d(32, self.POINTS, 1))
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")
        self.register_buffer("places", places_of(size // 4), persistent=False)
        self.channels = 12 * (size // 16) ** 2

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """([n, POINTS, 2] of -1 to 1, [n, channels])."""
        maps, channels = self.look(pictures)
        return means_of(maps, self.places), channels

    def look(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """([n, POINTS, places] unnormalised logarithms of how likely a point lies there, [n, channels])."""
        quarter = self.quarter(self.enter(pictures))
        eighth = self.eighth(quarter)
        coarse = self.sixteenth(eighth)
        fine = self.side(quarter) + self.grow(self.up_again(eighth + self.grow(self.up(coarse))))
        maps = self.maps(fine).flatten(2).float() * SHARPNESS
        return maps, self.narrow(coarse).float().reshape(-1, self.channels)


class Shape(nn.Module):
    """A reader's points to numbers, and its channels to as many more: geometry is told by points, looks by colours."""

    def __init__(self, reader: PointReader, outer: int):
        super().__init__()
        self.points = head_of(2 * reader.POINTS, 192, outer)
        self.looks = head_of(reader.channels, 96, outer)

    def forward(self, points: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.points(points.reshape(-1, 2 * PointReader.POINTS)), self.looks(channels)], -1)


class Recognition(nn.Module):
    """ArcFace's crop [n, 3, 112, 112] of -1 to 1 to an identity vector [n, 512]: half shape, half looks."""

    def __init__(self):
        super().__init__()
        self.reader = PointReader(112)
        self.head = Shape(self.reader, EMBEDDING // 2)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(*self.reader(pictures))


class Landmarks(nn.Module):
    """[n, 3, 192, 192] to [n, 3309] as insightface's 1k3d68: the last 204 numbers are 68 points, the rest is empty."""

    def __init__(self):
        super().__init__()
        self.shrink = nn.AvgPool2d(2)
        self.reader = PointReader(96)
        self.depths = head_of(2 * 68, 96, 68)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        points = self.reader(self.shrink(pictures))[0][:, :68]
        points = torch.cat([points, self.depths(points.reshape(-1, 136))[..., None]], -1).flatten(1)
        return torch.cat([points.new_zeros(1, 3309 - 204).expand(points.shape[0], -1), points], 1)


def build_parsing() -> ParseNet:
    """facexlib's ParseNet, narrow: [n, 3, 128, 128] of -1 to 1 to the scores of 19 classes at each pixel."""
    return ParseNet(
        in_size=PARSING_SIDE, out_size=PARSING_SIDE, min_feat_size=32, base_ch=12, parsing_ch=19, res_depth=4,
        ch_range=[12, 40],
    )  # fmt: skip


def build_image_encoder(width: int = 64, depth: int = 6, size: int = IMAGE_SIZE, pooled: int = POOLED) -> Eva:
    """EVA02-CLIP's visual tower, small."""
    return Eva(
        img_size=size,
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
        num_classes=pooled,
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
