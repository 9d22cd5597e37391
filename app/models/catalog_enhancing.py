"""The rows of what makes pictures larger and faces clear again: Real-ESRGAN, GFPGAN, RestoreFormer, and Lanczos.

All are published as releases of their authors' repositories, pickled, and stored converted. A part of an upscaler is
the sibling whose weights can be mixed with its own.
"""

from app.models.licences import APACHE, BSD_3, GFPGAN
from app.models.spec import NO_FILES, Kind, Licence, ModelSpec, Source

UPSCALE, RESTORE_FACE = "upscale", "restore-face"
UPSCALER_LOADER, RESTORER_LOADER = "app.models.upscalers:load", "app.models.restorers:load"
LANCZOS, GENERAL = "lanczos", "real-esrgan-general-x4v3"
WEAK_DENOISE = "real-esrgan-general-wdn-x4v3"

_REAL_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_GFPGAN = "https://github.com/TencentARC/GFPGAN/releases/download"


def _published(
    id: str,
    title: str,
    kind: Kind,
    licence: Licence,
    url: str,
    bytes: int,
    sha256: str,
    rank: int,
    description: str,
    parts: tuple[str, ...] = (),
) -> ModelSpec:
    task, loader = {"upscaler": (UPSCALE, UPSCALER_LOADER), "restorer": (RESTORE_FACE, RESTORER_LOADER)}[kind]
    return ModelSpec(
        id=id,
        title=title,
        kind=kind,
        family="other",
        licence=licence,
        bytes=bytes,
        loader=loader,
        sources=(Source(url.rpartition("/")[2], url, bytes, sha256),),
        tasks=(task,),
        parts=parts,
        rank=rank,
        options={"layout": "single-file"},
        description=description,
    )


ENHANCING: tuple[ModelSpec, ...] = (
    _published(
        "real-esrgan-x4plus", "Real-ESRGAN x4plus", "upscaler", BSD_3,
        f"{_REAL_ESRGAN}/v0.1.0/RealESRGAN_x4plus.pth", 67_040_989,
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1", 40,
        "Photographs four times as large; its detail is the sharpest of these, and the slowest to make.",
    ),
    _published(
        GENERAL, "Real-ESRGAN general x4v3", "upscaler", BSD_3,
        f"{_REAL_ESRGAN}/v0.2.5.0/realesr-general-x4v3.pth", 4_885_111,
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292", 50,
        "Anything four times as large, quickly; denoise_strength says how much noise goes.",
        parts=(WEAK_DENOISE,),
    ),
    _published(
        WEAK_DENOISE, "Real-ESRGAN general x4v3, weak denoising", "upscaler", BSD_3,
        f"{_REAL_ESRGAN}/v0.2.5.0/realesr-general-wdn-x4v3.pth", 4_885_111,
        "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca", 10,
        "The sibling that keeps grain; the other mixes its weights in.",
    ),
    _published(
        "real-esrgan-x2plus", "Real-ESRGAN x2plus", "upscaler", BSD_3,
        f"{_REAL_ESRGAN}/v0.2.1/RealESRGAN_x2plus.pth", 67_061_725,
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb", 30,
        "Photographs twice as large.",
    ),
    _published(
        "real-esrgan-x4plus-anime", "Real-ESRGAN x4plus anime 6B", "upscaler", BSD_3,
        f"{_REAL_ESRGAN}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth", 17_938_799,
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da", 20,
        "Drawings four times as large.",
    ),
    _published(
        "real-esrgan-animevideo-v3", "Real-ESRGAN animevideo v3", "upscaler", BSD_3,
        f"{_REAL_ESRGAN}/v0.2.5.0/realesr-animevideov3.pth", 2_504_012,
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d", 15,
        "Drawings four times as large, by the smallest of these networks.",
    ),
    ModelSpec(
        id=LANCZOS,
        title="Lanczos (no weights)",
        kind="upscaler",
        family="other",
        licence=APACHE,
        bytes=0,
        loader="app.models.without_weights:load_lanczos",
        embedded=NO_FILES,
        tasks=(UPSCALE,),
        rank=-10,
        description="A smooth resize that adds no detail.",
    ),
    _published(
        "gfpgan-v1.4", "GFPGAN v1.4", "restorer", GFPGAN,
        f"{_GFPGAN}/v1.3.0/GFPGANv1.4.pth", 348_632_874,
        "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad", 50,
        "Makes blurred, small and damaged faces clear again.",
        parts=("facexlib",),
    ),
    _published(
        "gfpgan-v1.3", "GFPGAN v1.3", "restorer", GFPGAN,
        f"{_GFPGAN}/v1.3.0/GFPGANv1.3.pth", 348_632_874,
        "c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70", 40,
        "The version before, whose faces are a little softer.",
        parts=("facexlib",),
    ),
    _published(
        "restoreformer", "RestoreFormer", "restorer", APACHE,
        f"{_GFPGAN}/v1.3.4/RestoreFormer.pth", 290_785_322,
        "07404d446d62ca3d5ed38b1de09a947a1e77d46dbccec961a74d713a8f24ace0", 30,
        "Draws faces from a dictionary of faces; it takes no noise, so a seed changes nothing.",
        parts=("facexlib",),
    ),
)  # fmt: skip
