"""Restore faces: draw blurred, small and damaged faces clear again, and leave everything else as it is."""

from typing import Any

from PIL import Image

from app.core.attachments import FaceReference
from app.core.capability import Capability, Context, Door, FaceReader, Request, Result
from app.core.enhance_fields import (
    LANCZOS,
    Blend,
    EnhanceImage,
    FaceScale,
    PartsModel,
    RestorerModel,
    TileSize,
    UpscalerModel,
    WhichFaces,
)
from app.core.fields import SEED_LIMIT, Seed
from app.errors import InvalidRequest, NoFaceFound
from app.imaging.detected_faces import Face, counted, described
from app.imaging.face_restore import crop_mask, enlarged_matrix, lay_back, shows_face
from app.imaging.sizes import require_large_result, times


class RestoreFaceRequest(Request):
    """A picture, whose faces, and how much of what is restored is taken."""

    image: EnhanceImage
    face_index: WhichFaces = ()
    restorer: RestorerModel = "auto"
    faces_model: PartsModel = "auto"
    blend: Blend = 1.0
    scale: FaceScale = 1.0
    upscaler: UpscalerModel = "auto"
    tile_size: TileSize = None
    seed: Seed = None


def check(request: RestoreFaceRequest, door: Door) -> None:
    """The result is within the limits."""
    require_large_result(times(door.size(request.image), request.scale))


def run(request: RestoreFaceRequest, context: Context) -> Result:
    """The background first, then each face: upright, restored, and laid back by its own parts."""
    image, alpha = context.image(request.image), context.alpha(request.image)
    size = times(image.size, request.scale)
    with context.faces(request.faces_model) as reader:
        numbers, faces = chosen(request, reader, image)
        crops = [reader.upright(FaceReference(image, number, field="image")) for number in numbers]
    result, notes = background(request, context, image, size, len(crops))
    with context.face_restorer(request.restorer) as restore:
        for at, (crop, matrix) in enumerate(crops):
            drawn = restore(crop, ((request.seed or 0) + numbers[at]) % SEED_LIMIT)
            with context.faces(request.faces_model) as reader:
                parts = reader.parts_of(drawn)
                if not shows_face(parts):
                    parts = reader.parts_of(crop)
                    notes.append(f"Face {numbers[at]} is not seen as one after it was restored: look whether it is.")
            mask = crop_mask(parts)
            result = lay_back(result, drawn, mask, enlarged_matrix(matrix, image.size, size), request.blend)
            context.progress(at + 1, len(crops))
    if alpha is not None:
        result = result.copy()
        result.putalpha(alpha if size == image.size else alpha.resize(size, Image.Resampling.LANCZOS))
    data: dict[str, Any] = {
        "from": list(image.size),
        "to": list(size),
        "restorer": request.restorer,
        "faces": described(faces),
        "face_index": numbers,
    }
    return Result(images=[result], seeds=[request.seed or 0], data=data, notes=notes)


def chosen(request: RestoreFaceRequest, reader: FaceReader, image: Image.Image) -> tuple[list[int], list[Face]]:
    """The numbers of the faces that are meant, and those faces; `NoFaceFound`, or `InvalidRequest`
    where there is no such number."""
    faces = reader.all(image)
    if not faces:
        raise NoFaceFound("No face was found in the picture.", field="image", faces=[])
    numbers = list(dict.fromkeys(request.face_index)) or list(range(len(faces)))
    beyond = [number for number in numbers if number >= len(faces)]
    if beyond:
        raise InvalidRequest(
            f"There is no face number {beyond[0]}: the picture shows {counted(faces)}, counted from 0, largest first.",
            field="face_index",
            faces=described(faces),
        )
    return numbers, [faces[number] for number in numbers]


def background(
    request: RestoreFaceRequest, context: Context, image: Image.Image, size: tuple[int, int], faces: int
) -> tuple[Image.Image, list[str]]:
    """What is not a face, at the result's size; the picture itself where that is its own."""
    context.progress(0, faces)
    if size == image.size:
        return image, []
    with context.upscaler(request.upscaler) as upscale:
        made = upscale(image, size, tile_size=request.tile_size, on_tile=lambda done, count: context.progress(0, faces))
    told = "What is not a face was made larger by Lanczos' filter (no weights)."
    return made.image, [*made.notes, *([told] if request.upscaler == LANCZOS else [])]


RESTORE_FACE = Capability(
    name="restore-face",
    title="Restore faces",
    summary="Draw blurred, small and damaged faces clear again.",
    request=RestoreFaceRequest,
    run=run,
    check=check,
    additions={"restorer": "restore-face", "faces_model": "face-parts", "upscaler": "upscale"},
    tab="enhance",
    group_title="Enhance",
    example={"seed": 7},
)
