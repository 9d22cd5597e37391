"""The rows of what finds and removes things: segmenters and erasers, two of which are OpenCV's and have no weights.

Commits are as public sources pin them. SAM and SAM 2 need of their folders the configuration and the weights alone.
"""

from app.models.licences import APACHE
from app.models.spec import NO_FILES, ModelSpec

SEGMENT, ERASE = "segment", "erase"
GRABCUT, OPENCV_INPAINT = "grabcut", "opencv-inpaint"
SEGMENTER_LOADER, ERASER_LOADER = "app.models.segmenters:load", "app.models.erasers:load"

SEGMENTERS = {"sam": "SAM", "sam2": "SAM 2", "sam2_video": "SAM 2"}
"""`model_type` of a folder's config.json -> the name of the model."""


def _sam(id: str, title: str, bytes: int, repo: str, revision: str, rank: int, description: str) -> ModelSpec:
    return ModelSpec(
        id=id,
        title=title,
        kind="segmenter",
        family="other",
        licence=APACHE,
        bytes=bytes,
        loader=SEGMENTER_LOADER,
        repo=repo,
        revision=revision,
        files=("config.json", "model.safetensors"),
        tasks=(SEGMENT,),
        rank=rank,
        options={"layout": "folder"},
        description=description,
    )


CUTTING: tuple[ModelSpec, ...] = (
    _sam("sam2.1-base-plus", "SAM 2.1, Hiera base plus", 323_500_000, "facebook/sam2.1-hiera-base-plus",
         "b7320756a13354e7530a63935656d35b2f91a290", 50, "Masks of what is clicked, with careful edges."),
    _sam("sam2.1-large", "SAM 2.1, Hiera large", 898_000_000, "facebook/sam2.1-hiera-large",
         "665f8e2ad61cf5f53d65644ff27c8ee525124610", 60, "The best masks of SAM 2.1."),
    _sam("sam2.1-small", "SAM 2.1, Hiera small", 184_400_000, "facebook/sam2.1-hiera-small",
         "ee5bba1d82bb8749febdf90f45e84b687142ba03", 40, "A lighter SAM 2.1."),
    _sam("sam2.1-tiny", "SAM 2.1, Hiera tiny", 155_900_000, "facebook/sam2.1-hiera-tiny",
         "de431c4043854a71d8101e17995dfe596bf101a5", 30, "The lightest SAM 2.1, for a CPU."),
    _sam("sam-vit-base", "SAM, ViT base", 375_000_000, "facebook/sam-vit-base",
         "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f", 20, "The first Segment Anything, in its smallest size."),
    _sam("sam-vit-large", "SAM, ViT large", 1_249_500_000, "facebook/sam-vit-large",
         "6851e0441005b0fb96f2cc4dfac472f3d1b14af1", 24, "The first Segment Anything, in its middle size."),
    _sam("sam-vit-huge", "SAM, ViT huge", 2_564_500_000, "facebook/sam-vit-huge",
         "87aecf0df4ce6b30cd7de76e87673c49644bdf67", 28, "The first Segment Anything, in its largest size."),
    ModelSpec(
        id=GRABCUT,
        title="GrabCut (OpenCV, no weights)",
        kind="segmenter",
        family="other",
        licence=APACHE,
        bytes=0,
        loader="app.models.without_weights:load_grabcut",
        embedded=NO_FILES,
        tasks=(SEGMENT,),
        rank=-10,
        description="Cuts along edges by the colours around points or in a box; it knows no things.",
    ),
    ModelSpec(
        id="lama",
        title="LaMa (big-lama)",
        kind="eraser",
        family="other",
        licence=APACHE,
        bytes=204_400_000,
        loader=ERASER_LOADER,
        repo="michaelgold/big-lama",
        revision="98ab7cface89a594b381f32fc7a9f2cae3f91ccc",
        files=("big-lama.safetensors",),
        tasks=(ERASE,),
        rank=50,
        options={"layout": "single-file"},
        sha256={"big-lama.safetensors": "326ae1889b92d07c8819c35eaf561f8b290d057536eeb12524b72997f31005ec"},
        description="Removes things: goes on with the textures around a hole, at full resolution.",
    ),
    ModelSpec(
        id=OPENCV_INPAINT,
        title="OpenCV inpainting (no weights)",
        kind="eraser",
        family="other",
        licence=APACHE,
        bytes=0,
        loader="app.models.without_weights:load_smearing",
        embedded=NO_FILES,
        tasks=(ERASE,),
        rank=-10,
        description="Carries the colours at a hole's edge inwards (Telea); large holes blur.",
    ),
)  # fmt: skip
