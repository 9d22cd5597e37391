"""One row of the model catalog: which weights, size, licence, and what loads them, by name. Plain data, no torch."""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "checkpoint",
    "lora",
    "embedding",
    "vae",
    "controlnet",
    "preprocessor",
    "faces",
    "image-encoder",
    "identity",
    "ip-adapter",
    "segmenter",
    "eraser",
    "upscaler",
    "restorer",
    "tagger",
    "other",
]
Family = Literal["sd15", "sdxl", "qwen-image", "flux", "other"]
"""Whose network it is: a LoRA acts on every model of its family. Step1X-Edit's is FLUX's."""

EDITORS: frozenset[Family] = frozenset({"qwen-image", "flux"})
"""Families whose loader opens an instruction editor, which tells a trainer by itself what it must know."""

NO_FILES = ""
"""What `embedded` says of a row that is code alone: it is always there."""

BESIDE: frozenset[Kind] = frozenset({"segmenter", "upscaler"})
"""Kinds of what works on the picture beside the model, whichever model that is."""


@dataclass(frozen=True)
class Licence:
    """Under which terms the weights may be used. `ask` is true where they limit use: `eis models pull` then asks."""

    name: str
    url: str
    commercial: bool
    ask: bool = False


@dataclass(frozen=True)
class Recommended:
    """What a null field of a request means for this model."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int

    @property
    def true_cfg_scale(self) -> float:
        """Guidance under the name that it has where a negative prompt is a pass of its own."""
        return self.guidance_scale

    @property
    def is_for_few_steps(self) -> bool:
        """Whether the model was distilled: more steps, and guidance, make its pictures worse."""
        return self.num_inference_steps <= 8


@dataclass(frozen=True)
class Source:
    """A file that lies at an address of its own and in no repository, with what is known of its bytes."""

    path: str
    url: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelSpec:
    """One row: everything that is known about a checkpoint without opening it.

    `loader` names the function that opens it (`"app.models.pipelines:load"`), called in the worker as
    `loader(spec, folder_or_file, device, parts=rows)`. `files` are the paths inside the repository at `revision` (glob
    patterns allowed); `bytes` is their sum. `parts` names other rows that are put into this one (a VAE, a distilled
    UNet's LoRA). `tasks` are what the model serves; `rank` orders candidates for `model="auto"` (higher first).
    `sha256` holds what is known beforehand of single files' contents: a pull that is offered other bytes fails.
    `sources` are files from elsewhere than the repository. A published pickle is named in `files` or `sources` by its
    whole name and stored as safetensors: under the name that `stored_as` gives it, else its own with another ending. A
    safetensors file that `stored_as` names is written anew too, as the option `store` says. `written` are small files,
    by name, that the published weights come without and the pull adds. A row with parts and no files of its own is a
    set: pulling it brings them all. `embedded` is the folder in the package of what comes with the service, `NO_FILES`
    where it has no weights.
    """

    id: str
    title: str
    kind: Kind
    family: Family
    licence: Licence
    bytes: int
    loader: str = "app.models.pipelines:load"
    repo: str | None = None
    revision: str = "main"
    files: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    recommended: Recommended | None = None
    parts: tuple[str, ...] = ()
    rank: int = 0
    description: str = ""
    embedded: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    stored_as: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    @property
    def is_pullable(self) -> bool:
        """Whether its files, or its parts, can be fetched."""
        return self.repo is not None or bool(self.sources)

    @property
    def comes_along(self) -> bool:
        """Whether the service brings it: it is neither fetched nor removed."""
        return self.embedded is not None

    def fits(self, base: "ModelSpec") -> bool:
        """Whether this addition was made for that checkpoint: of its family, and of it alone where the row names one.

        A row that names none was made for the published checkpoints, never for an embedded one.
        """
        if self.kind in BESIDE:
            return True
        named = self.options.get("base")
        return self.family == base.family and (named == base.id if named else base.embedded is None)
