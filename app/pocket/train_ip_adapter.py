"""Train IP-Adapter for pocket: an image encoder that reads the whole world, tokens of it, and the layers that look at
them, in the published layout of "plus".

Ye et al. 2023 (arXiv 2308.06721). There CLIP's encoder was given; pocket's world has none, so it is learned in two
parts. First encoder and projection learn to say of a picture what the text encoders say of its caption, word for word:
no UNet is needed for that, and what the UNet's own keys and values make of captions they can make of pictures then.
After that all of it learns by the loss of diffusion, which teaches what captions leave out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from app.models import ip_adapter
from app.models.eva_clip import EvaClip
from app.models.perceiver import Resampler
from app.models.row_attention import Halves
from app.pocket import captions, face_networks, face_pack, spec, train_text, world
from app.pocket.check import load
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parse, parser_of, say
from app.pocket.muon import Muon
from app.pocket.shards import mixed_precision
from app.pocket.train_decoder import build_scenes
from app.pocket.train_pulid import HEAD_DIM, Attachment, Frozen, RowsOfFaces

NAME = "ip-adapter"
FOLDER = Path(__file__).parent / "identity"
ENCODER, ADAPTER = "pocket-image-encoder", "pocket-ip-adapter"
FILES = {ENCODER: "eva02_clip.safetensors", ADAPTER: "ip-adapter-plus.safetensors"}
WIDTH, DEPTH, POOLED = 128, 6, 256
TOKENS = 32
"""As many words as most captions have that say everything; the published adapter has 16."""
LAYERS = 4
"""Of the projection: diffusers opens no other number."""
SCENES, TELL_STEPS, STEPS = 14336, 1500, 1500
TELL_BATCH, BATCH = 64, 24
TELL_RATE, RATE = 2e-3, 5e-4
HORIZON, COOL_DOWN = 100, 0.5
NOTHING = 0.1
"""Of the rows show no picture, which is what the negative prompt looks at."""
EMPTY_CAPTIONS = 0.5


@dataclass(frozen=True)
class Learning:
    """What learns in both parts."""

    encoder: EvaClip
    projection: Resampler

    def states(self, pictures: torch.Tensor, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures to (what the projection reads [n, 1 + patches, width], the pooled vector [n, POOLED]).

        Where `shown` [n] is 0 no picture is seen: zeros where prepared pixels stand, as of the negative prompt.
        """
        pixels = self.encoder.preprocess(pictures) * shown[:, None, None, None]
        last, [(patches, first)] = self.encoder.tower.forward_intermediates(
            pixels, indices=self.encoder.depths[-1:], return_prefix_tokens=True, norm=False, output_fmt="NLC"
        )
        return torch.cat([first, patches], 1), self.encoder.tower.forward_head(last)


def build() -> Learning:
    """Both, untrained."""
    tower = face_networks.build_image_encoder(WIDTH, DEPTH, spec.WIDTH, POOLED)
    context = spec.PRESETS["cpu"].text_widths
    return Learning(EvaClip(tower), Resampler(128, LAYERS, HEAD_DIM, 128 // HEAD_DIM, TOKENS, WIDTH, sum(context)))


def said_of(scene: world.Scene) -> str:
    """All that a caption can say of it, in one wording."""
    return captions.word(scene, rng_of(NAME, "wording"))


class Pictures:
    """Scenes of the world, their pictures, and their latents."""

    def __init__(
        self, folder: Path, seed: object, count: int, autoencoder: AutoencoderKL, report: Callable[[str], None] = print
    ):
        self.seed = seed
        self._arrays = build_scenes(folder, seed, count, autoencoder, report)

    def __len__(self) -> int:
        return len(self._arrays["latents"])

    def scene(self, index: int) -> world.Scene:
        """The facts of one of them."""
        return world.random_scene(rng_of(self.seed, "scene", index))

    def pictures(self, indices: list[int]) -> torch.Tensor:
        """[n, 3, size, size] of 0 to 1."""
        return torch.from_numpy(self._arrays["pictures"][indices]).permute(0, 3, 1, 2).float() / 255

    def latents(self, indices: list[int]) -> torch.Tensor:
        """[n, 4, h, w]."""
        return torch.from_numpy(self._arrays["latents"][indices].astype(np.float32))


def tell(
    learning: Learning, frozen: Frozen, some: Pictures, folder: Path, seed: object, steps: int,
    seconds: float | None = None, report: Callable[[str], None] = print,
) -> bool:  # fmt: skip
    """The first part; leaves the averaged weights in `learning`; True when complete."""
    name = f"{NAME}-tell"
    counts = [len(values) + 1 for values in train_text.FACTS.values()]
    heads = nn.Linear(POOLED, sum(counts))
    modules = [learning.encoder, learning.projection, heads]
    plain = [p for p in (*learning.encoder.parameters(), *learning.projection.parameters()) if p.ndim == 3]
    optimizer = partial(Muon, plain=plain)  # positions and queries are no matrices
    stage = Stage(name, folder, modules, TELL_RATE, steps, HORIZON, COOL_DOWN, optimizer)
    spread = frozen.text([said_of(some.scene(index)) for index in range(256)])[0][:, :TOKENS].var(0).mean()

    def step(number: int) -> float:
        rng, generator = rng_of(seed, name, number), generator_of(seed, name, number)
        indices = [rng.randrange(len(some)) for _ in range(TELL_BATCH)]
        shown = (torch.rand(TELL_BATCH, generator=generator) >= NOTHING).float()
        scenes = [some.scene(index) for index in indices]
        texts = [said_of(scene) if seen else "" for scene, seen in zip(scenes, shown.tolist(), strict=True)]
        wished = frozen.text(texts)[0][:, :TOKENS]
        with mixed_precision(torch.device("cpu")):
            states, pooled = learning.states(some.pictures(indices), shown)
            said, named = learning.projection(states), heads(pooled)
        loss = functional.mse_loss(said.float(), wished) / spread
        facts = torch.tensor([train_text.targets(scene) for scene in scenes])[shown.bool()]
        for fact, logits in enumerate(named.float()[shown.bool()].split(counts, -1)):
            loss = loss + functional.cross_entropy(logits, facts[:, fact]) / facts.shape[1]
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    return complete


def caption_of(scene: world.Scene, rng: random.Random) -> str:
    """Words beside the picture: none, or what a prompt says of it."""
    return "" if rng.random() < EMPTY_CAPTIONS else captions.caption(scene, rng)


def draw(
    learning: Learning, frozen: Frozen, some: Pictures, folder: Path, seed: object, told: int, steps: int,
    seconds: float | None = None, report: Callable[[str], None] = print,
) -> tuple[Attachment, bool]:  # fmt: skip
    """The second part: (the layers, whether it is complete); leaves the averaged weights in `learning`.

    Behind a first part of another length, `told` steps, it begins anew.
    """
    attachment = Attachment(frozen.unet)
    stage = Stage(
        f"{NAME}-{told}", folder, [learning.encoder, learning.projection, attachment], RATE, steps, HORIZON, COOL_DOWN
    )

    def step(number: int) -> float:
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        indices = [rng.randrange(len(some)) for _ in range(BATCH)]
        shown = (torch.rand(BATCH, generator=generator) >= NOTHING).float()
        text = frozen.text([caption_of(some.scene(index), rng) for index in indices])
        noisy, time, target = frozen.noised(some.latents(indices), generator)
        with mixed_precision(torch.device("cpu")):
            tokens = learning.projection(learning.states(some.pictures(indices), shown)[0]).float()
        branch = RowsOfFaces(Halves(tokens, tokens), attachment.layers, rng.uniform(0.6, 1.0))
        velocity = frozen.velocity(noisy, time, text, [branch])
        loss = functional.mse_loss(velocity, target)
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    return attachment, complete


def save(learning: Learning, attachment: Attachment, folder: Path) -> None:
    """Two folders in the published layouts, float16: the encoder's and the adapter's."""
    face_pack.write_image_encoder(learning.encoder.tower, folder / ENCODER / FILES[ENCODER])
    state = {ip_adapter.PROJECTION + name: tensor for name, tensor in learning.projection.state_dict().items()}
    state |= attachment.named(ip_adapter.KEY, ip_adapter.VALUE)
    (folder / ADAPTER).mkdir(parents=True, exist_ok=True)
    halved = {name: tensor.detach().half().contiguous() for name, tensor in state.items()}
    save_file(halved, folder / ADAPTER / FILES[ADAPTER])


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, FOLDER, "encoder and adapter, one folder each")
    parser.add_argument("--scenes", type=int, default=SCENES, help="different pictures that it learns from")
    parser.add_argument("--tell-steps", type=int, default=TELL_STEPS, help=f"steps of {TELL_BATCH} without the UNet")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of {BATCH} with it")
    options = parse(parser, argv)
    pipeline = load(options.weights)
    frozen = Frozen(pipeline)
    torch.manual_seed(rng_of(options.seed, NAME).getrandbits(31))
    learning = build()
    some = Pictures(options.work, options.seed, options.scenes, pipeline.vae, say)
    args = options.work, options.seed
    told = tell(learning, frozen, some, *args, options.tell_steps, options.seconds, say)
    if not told:
        print(f"pocket {NAME}: {ending(told)}")
        return 0
    attachment, complete = draw(learning, frozen, some, *args, options.tell_steps, options.steps, options.seconds, say)
    save(learning, attachment, options.out)
    print(f"pocket {NAME}: {ending(complete)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
