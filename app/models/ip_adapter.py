"""IP-Adapter: pictures as a prompt, on any UNet that cross-attends, by diffusers' own projections.

Source: Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter" (arXiv 2308.06721); blocks for style and layout:
Wang et al., "InstantStyle" (arXiv 2404.02733). The whole picture is looked at: one that is not square stands on a
square of its mean colour, where the stock preparation would cut its borders away.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from app.core.attachments import ImagePrompt
from app.errors import InvalidRequest
from app.models.adapters import Addition
from app.models.attached import Attached, mask_tensor
from app.models.device import TorchDevice
from app.models.image_encoders import PictureEncoder, open_encoder
from app.models.library import ModelRow
from app.models.opening import refusing
from app.models.row_attention import Branch, Halves, layers_from, require_fit
from app.models.spec import ModelSpec
from app.models.weights import Weights

PROJECTION = "image_proj."
KEY, VALUE = "ip_adapter.{}.to_k_ip.weight", "ip_adapter.{}.to_v_ip.weight"
SIDES = {"down": "A", "up": "B"}
FACE_CROP = 224
"""Side in pixels of the upright face that FaceID plus looks at beside the vector."""
BLOCKS = {"style": "up_blocks.0.attentions.1.", "layout": "down_blocks.2.attentions.1."}
"""Where SDXL decides on style and on layout (InstantStyle)."""


class IpAdapter(Weights):
    """An adapter's file with the encoder that it was trained on; one of the two is None for FaceID and its kin."""

    def __init__(
        self,
        spec: ModelSpec,
        state: Mapping[str, torch.Tensor],
        encoder: PictureEncoder | None,
        device: TorchDevice,
        path: Path,
    ) -> None:
        self.id = spec.id
        self.encoder = encoder
        self.path = path
        self.loras = {name: value for name, value in state.items() if "_lora." in name}
        part = {name.removeprefix(PROJECTION): value for name, value in state.items() if name.startswith(PROJECTION)}
        self.wanted_width = _wanted_width(part)
        convert = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
        self.projection = convert(None, part, low_cpu_mem_usage=False).float().eval().requires_grad_(False)
        if isinstance(self.projection, IPAdapterFaceIDPlusImageProjection):
            self.projection.shortcut = spec.options.get("shortcut") == "true"
        self._check_encoder()
        modules = [self.projection] + ([encoder.network] if encoder else [])
        super().__init__(device, modules, layers_from(state, KEY, VALUE))

    @property
    def reads_faces(self) -> bool:
        """Whether it looks at a face's vector."""
        return isinstance(self.projection, IPAdapterFaceIDImageProjection | IPAdapterFaceIDPlusImageProjection)

    @property
    def has_shortcut(self) -> bool:
        """Whether it adds the look of a face to the face's own tokens, as FaceID plus v2 does."""
        return getattr(self.projection, "shortcut", False)

    def tokens(
        self, images: Sequence[Image.Image], vectors: Sequence[torch.Tensor] = (), shortcut_scale: float = 1.0
    ) -> Halves:
        """Tokens of pictures that are looked at as one [1, tokens of all, width]; `vectors` are their faces'."""
        with torch.no_grad():
            if self.reads_faces:
                return self._tokens_of_faces(images, vectors, shortcut_scale)
            pixels = self._moved(torch.cat([self.encoder.preprocess(square(image)) for image in images]))
            if isinstance(self.projection, ImageProjection):
                found = self.encoder.embedding(pixels).float()
                nothing = torch.zeros_like(found)
            else:
                # The negative prompt's is what the encoder says of a black picture, after its own normalisation.
                found = self.encoder.states(pixels).float()
                nothing = self.encoder.states(torch.zeros_like(pixels)).float()
            return Halves(self._projected(found), self._projected(nothing))

    def branch(
        self,
        tokens: Halves,
        scale: float,
        blocks: str,
        unet: Any,
        mask: torch.Tensor | None = None,
        start: float = 0.0,
        end: float = 1.0,
    ) -> Branch:
        """These tokens as cross-attention is to look at them."""
        scales = scale if blocks == "all" else scales_of(blocks, scale, unet, self.id)
        return Branch(tokens, self.layers, scales, mask, start, end)

    def check_fit(self, unet: Any, model: str) -> None:
        """`InvalidRequest` where this file was made for another UNet."""
        require_fit(self.id, self.layers, unet, model)

    def lora_file(self, unet: Any) -> Path | None:
        """The LoRA that a FaceID file brings along, as a file of its own in diffusers' names, or None."""
        if not self.loras:
            return None
        file = self.path.with_name(f"{self.path.stem}.lora.safetensors")
        if not file.is_file():
            modules = [name.removesuffix(".processor") for name in unet.attn_processors]
            renamed = {}
            for name, value in self.loras.items():
                number, layer, side, _ = name.removeprefix("ip_adapter.").split(".")
                layer = layer.removesuffix("_lora").replace("to_out", "to_out.0")
                renamed[f"unet.{modules[int(number)]}.{layer}.lora_{SIDES[side]}.weight"] = value.contiguous()
            part = file.with_suffix(".part")
            save_file(renamed, part)
            part.replace(file)
        return file

    def _tokens_of_faces(
        self, images: Sequence[Image.Image], vectors: Sequence[torch.Tensor], shortcut_scale: float
    ) -> Halves:
        # The order and the length that its training had: unit vectors.
        faces = functional.normalize(self._moved(torch.stack(list(vectors))), dim=-1)
        if isinstance(self.projection, IPAdapterFaceIDPlusImageProjection):
            pixels = self._moved(torch.cat([self.encoder.preprocess(square(image)) for image in images]))
            states = self.encoder.states(pixels).float()
            nothing = self.encoder.states(torch.zeros_like(pixels)).float()
            # Set for this call, whose turn on the device it is, and never left over from another's.
            self.projection.shortcut_scale = shortcut_scale
            self.projection.clip_embeds = states[:, None]
            prompt = self._projected(faces)
            self.projection.clip_embeds = nothing[:, None]
            negative = self._projected(torch.zeros_like(faces))
            self.projection.clip_embeds = None
            return Halves(prompt, negative)
        return Halves(self._projected(faces), self._projected(torch.zeros_like(faces)))

    def _projected(self, features: torch.Tensor) -> torch.Tensor:
        tokens = self.projection(features)
        return tokens.reshape(1, -1, tokens.shape[-1])

    def _check_encoder(self) -> None:
        """`InvalidRequest` where the encoder says something else than the projection reads."""
        if self.wanted_width is None:
            return
        if self.encoder is None:
            raise InvalidRequest(f"{self.id!r} needs an image encoder beside it.", model=self.id)
        is_plain = isinstance(self.projection, ImageProjection)
        width = self.encoder.embedding_width if is_plain else self.encoder.state_width
        if width != self.wanted_width:
            raise InvalidRequest(
                f"{self.id!r} reads features of {self.wanted_width} numbers; the image encoder {self.encoder.id!r} "
                f"says {width}: they were not made for each other.",
                model=self.id,
                encoder=self.encoder.id,
            )


def _wanted_width(state: Mapping[str, torch.Tensor]) -> int | None:
    """How many numbers of the image encoder the projection reads; None where it reads a face's vector alone."""
    if "perceiver_resampler.proj_in.weight" in state:
        return state["perceiver_resampler.proj_in.weight"].shape[1]
    if "proj.weight" in state:
        return state["proj.weight"].shape[1]
    if "proj.3.weight" in state:
        return state["proj.0.weight"].shape[1]
    if "norm.weight" in state:
        return None
    return state["proj_in.weight"].shape[1]


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> IpAdapter:
    """Open an adapter's file and, out of the parts, the image encoder that it reads."""
    encoders = [part for part in parts if part.spec.kind == "image-encoder"]
    with refusing(spec, "its file is no whole IP-Adapter"):
        encoder = open_encoder(encoders[0], device) if encoders else None
        return IpAdapter(spec, load_file(path), encoder, device, path)


def attach(opened: IpAdapter, wish: ImagePrompt, *, faces: Any, unet: Any, **more: Any) -> Attached:
    """The pictures' tokens beside the text: of all as one, or of each with its own weight and mask."""
    vectors = []
    if opened.reads_faces:
        if not wish.faces:
            raise InvalidRequest(f"{opened.id!r} reads faces: give face pictures.", model=opened.id)
        vectors = [faces.arcface(face) for face in wish.faces]
    if wish.shortcut_scale != 1 and not opened.has_shortcut:
        raise InvalidRequest(
            f"shortcut_scale is for FaceID plus v2; {opened.id!r} is another adapter.", field="shortcut_scale"
        )
    images = list(wish.images)
    if opened.reads_faces:
        images = [faces.crop(face, FACE_CROP) for face in wish.faces] if opened.encoder is not None else []
    lora = opened.lora_file(unet)
    loras = () if lora is None else (Addition(opened.id, lora),)
    window = {"start": wish.start, "end": wish.end}
    if not any(wish.masks) and len(set(wish.scales)) < 2:
        scale = wish.scale * (wish.scales[0] if wish.scales else 1.0)
        return Attached(
            (opened.branch(opened.tokens(images, vectors, wish.shortcut_scale), scale, wish.blocks, unet, **window),),
            loras=loras,
        )
    branches = []
    for number in range(max(len(images), len(vectors))):
        tokens = opened.tokens(images[number : number + 1], vectors[number : number + 1], wish.shortcut_scale)
        scale = wish.scale * (wish.scales[number] if wish.scales else 1.0)
        mask = mask_tensor(wish.masks[number]) if wish.masks else None
        branches.append(opened.branch(tokens, scale, wish.blocks, unet, mask, **window))
    return Attached(tuple(branches), loras=loras)


def scales_of(blocks: str, scale: float, unet: Any, id: str) -> dict[int, float]:
    """The scale of each layer where only the blocks for style, for layout, or both look at the pictures."""
    prefixes = [prefix for name, prefix in BLOCKS.items() if name in blocks.split(" and ")]
    found = {
        number: scale
        for number, name in enumerate(unet.attn_processors)
        if number % 2 and any(name.startswith(prefix) for prefix in prefixes)
    }
    if not found:
        raise InvalidRequest(f"{blocks!r} is known of SDXL's blocks only; the model has others.", model=id)
    return found


def square(image: Image.Image) -> Image.Image:
    """The whole picture in the middle of a square of its mean colour."""
    if image.width == image.height:
        return image
    side = max(image.size)
    mean = tuple(int(value) for value in np.asarray(image.convert("RGB"), np.float32).reshape(-1, 3).mean(0).round())
    sheet = Image.new("RGB", (side, side), mean)
    sheet.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return sheet
