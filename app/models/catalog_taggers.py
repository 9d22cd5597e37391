"""The rows of what names the contents of pictures: the WD14 taggers of the third version, and pocket's own.

Each is a folder of model.onnx and selected_tags.csv, which names its outputs. Of the repositories other files are left.
"""

from app.models.licences import APACHE
from app.models.spec import ModelSpec

TAG = "tag"
TAGGER_LOADER = "app.models.taggers:load"
NETWORK, LABELS = "model.onnx", "selected_tags.csv"
POCKET_TAGGER = "pocket-tagger"


def _wd(name: str, title: str, bytes: int, rank: int, description: str, revision: str = "main") -> ModelSpec:
    return ModelSpec(
        id=f"wd-{name}-tagger-v3",
        title=f"WD14 v3, {title}",
        kind="tagger",
        family="other",
        licence=APACHE,
        bytes=bytes,
        loader=TAGGER_LOADER,
        repo=f"SmilingWolf/wd-{name}-tagger-v3",
        revision=revision,
        files=(NETWORK, LABELS),
        tasks=(TAG,),
        rank=rank,
        options={"layout": "folder"},
        description=description,
    )


TAGGERS: tuple[ModelSpec, ...] = (
    _wd("eva02-large", "EVA02 large", 1_260_700_000, 60, "Danbooru's tags of a picture; the best of the five."),
    _wd("vit-large", "ViT large", 1_260_700_000, 50, "Danbooru's tags of a picture, by a large ViT."),
    _wd("swinv2", "SwinV2", 467_300_000, 40, "Danbooru's tags of a picture; good, and light enough for a CPU.",
        "805ca9892b4fdfbe3f06f9de3f0a07b3da8637ed"),
    _wd("convnext", "ConvNeXt", 395_300_000, 30, "Danbooru's tags of a picture, by a ConvNeXt.",
        "d39e46de298d27340111b64965e20b8185c407e6"),
    _wd("vit", "ViT", 378_800_000, 20, "Danbooru's tags of a picture; the lightest of the five."),
    ModelSpec(
        id=POCKET_TAGGER,
        title="Pocket tagger",
        kind="tagger",
        family="other",
        licence=APACHE,
        bytes=0,
        loader=TAGGER_LOADER,
        embedded="app/pocket/tagger",
        tasks=(TAG,),
        rank=0,
        options={"layout": "folder"},
        description="Names what pictures of pocket's world show; it knows no other pictures.",
    ),
)  # fmt: skip
