"""The rows of what reads a face or a picture for other models: face stacks and image encoders.

Which files lie in which repository, at which commit and with which bytes, is as their authors publish them. A face
stack of insightface is a folder of ONNX files; facexlib's networks are published as releases, and stored converted.
"""

from app.models.licences import APACHE, INSIGHTFACE, MIT
from app.models.spec import ModelSpec, Source

EVA_LOADER = "app.models.eva_clip:load"
"""The loader of the one image encoder that looks at aligned faces."""
FACE_PARTS = "face-parts"
"""The task of a face pack that also lines a face up and names its parts."""
PUBLISHED = {"same_face": "0.5", "similar_face": "0.3"}
"""Cosines of ArcFace's vectors from which faces are commonly taken for one person's, and for those of relatives."""
_FACEXLIB = "https://github.com/xinntao/facexlib/releases/download"

IP_ADAPTER_REVISION = "018e402774aeeddd60609b4ecdb7e298259dc729"
"""The commit of `h94/IP-Adapter`, which holds the image encoders beside its adapters."""

# The two packs differ in detector and recognition; these three are the same files.
_LANDMARKS = {
    "1k3d68.onnx": "df5c06b8a0c12e422b2ed8947b8869faa4105387f199c477af038aa01f9a45cc",
    "2d106det.onnx": "f001b856447c413801ef5c42091ed0cd516fcd21f2d6b79635b1e733a7109dbf",
    "genderage.onnx": "4fde69b1c810857b88c64a335084f1c3fe8f01246c9a191b48c7bb756d6652fb",
}
_SCRFD = "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
_ANTELOPE = _LANDMARKS | {
    "glintr100.onnx": "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
    "scrfd_10g_bnkps.onnx": _SCRFD,
}
_BUFFALO = {
    f"models/buffalo_l/{name}": digest
    for name, digest in {
        **_LANDMARKS,
        "det_10g.onnx": _SCRFD,
        "w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    }.items()
}

FACES: tuple[ModelSpec, ...] = (
    ModelSpec(
        id="antelopev2",
        title="insightface antelopev2",
        kind="faces",
        family="other",
        licence=INSIGHTFACE,
        bytes=427_550_200,
        loader="app.models.faces:load",
        repo="DIAMONIK7777/antelopev2",
        revision="ba0c3e10f4548361eb9a63265d87ce1140ab5a05",
        files=tuple(_ANTELOPE),
        tasks=("faces",),
        rank=30,
        options={"layout": "folder", **PUBLISHED},
        sha256=_ANTELOPE,
        description="Finds faces and turns each into the vector that PuLID, InstantID and EcomID read.",
    ),
    ModelSpec(
        id="buffalo_l",
        title="insightface buffalo_l",
        kind="faces",
        family="other",
        licence=INSIGHTFACE,
        bytes=341_268_726,
        loader="app.models.faces:load",
        repo="public-data/insightface",
        revision="33c1063c49c785b7652d3fd529f86fa4f149392b",
        files=tuple(_BUFFALO),
        tasks=("faces",),
        rank=20,
        options={"layout": "folder", "folder": "models/buffalo_l", **PUBLISHED},
        sha256=_BUFFALO,
        description="Finds faces and turns each into the vector that IP-Adapter FaceID reads.",
    ),
    ModelSpec(
        id="facexlib",
        title="facexlib: RetinaFace, BiSeNet, ParseNet",
        kind="faces",
        family="other",
        licence=MIT,
        bytes=248_118_417,
        loader="app.models.faces:load",
        sources=(
            Source(
                "detection_Resnet50_Final.pth",
                f"{_FACEXLIB}/v0.1.0/detection_Resnet50_Final.pth",
                109_497_761,
                "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
            ),
            Source(
                "parsing_bisenet.pth",
                f"{_FACEXLIB}/v0.2.0/parsing_bisenet.pth",
                53_289_463,
                "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
            ),
            Source(
                "parsing_parsenet.pth",
                f"{_FACEXLIB}/v0.2.2/parsing_parsenet.pth",
                85_331_193,
                "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
            ),
        ),
        stored_as={"detection_Resnet50_Final.pth": "retinaface_resnet50.safetensors"},
        tasks=("faces", FACE_PARTS),
        rank=10,
        options={"layout": "folder"},
        description="Aligns a face to 512 pixels and says which pixel is skin, hair, eye or background.",
    ),
)

IMAGE_ENCODERS: tuple[ModelSpec, ...] = (
    ModelSpec(
        id="eva02-clip-l-336",
        title="EVA02-CLIP L/14, 336 pixels",
        kind="image-encoder",
        family="other",
        licence=MIT,
        bytes=856_461_210,
        loader=EVA_LOADER,
        repo="QuanSun/EVA-CLIP",
        revision="11afd202f2ae80869d6cef18b1ec775e79bd8d12",
        files=("EVA02_CLIP_L_336_psz14_s6B.pt",),
        options={"layout": "single-file", "keep": "visual.", "head_dim": "64"},
        sha256={"EVA02_CLIP_L_336_psz14_s6B.pt": "84c3a17a228c567a155259b2245b0b59072bf7da510260a0a02ec54de6d50b05"},
        description="Reads a face's picture for PuLID and EcomID; of the file only the half that sees is kept.",
    ),
    ModelSpec(
        id="clip-vit-h",
        title="CLIP ViT-H/14",
        kind="image-encoder",
        family="other",
        licence=APACHE,
        bytes=2_528_374_008,
        loader="app.models.image_encoders:load",
        repo="h94/IP-Adapter",
        revision=IP_ADAPTER_REVISION,
        files=("models/image_encoder/config.json", "models/image_encoder/model.safetensors"),
        options={"layout": "folder", "folder": "models/image_encoder"},
        sha256={
            "models/image_encoder/model.safetensors": "6ca9667da1ca9e0b0f75e46bb030f7e011f44f86cbfb8d5a36590fcd7507b030"
        },
        description="Reads the picture for most IP-Adapters, the SDXL ones that name it among them.",
    ),
    ModelSpec(
        id="clip-vit-bigg",
        title="CLIP ViT-bigG/14",
        kind="image-encoder",
        family="other",
        licence=APACHE,
        bytes=3_689_913_232,
        loader="app.models.image_encoders:load",
        repo="h94/IP-Adapter",
        revision=IP_ADAPTER_REVISION,
        files=("sdxl_models/image_encoder/config.json", "sdxl_models/image_encoder/model.safetensors"),
        options={"layout": "folder", "folder": "sdxl_models/image_encoder"},
        sha256={
            "sdxl_models/image_encoder/model.safetensors": (
                "657723e09f46a7c3957df651601029f66b1748afb12b419816330f16ed45d64d"
            )
        },
        description="Reads the picture for the first SDXL IP-Adapter.",
    ),
)
