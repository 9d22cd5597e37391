"""Detect faces: where the faces of a picture are, so that a wish about a person can say which of them it means."""

from typing import Any

from app.core.capability import Capability, Context, Request, Result
from app.core.identity_fields import DrawFaces, FacesModel, SeenImage
from app.imaging.detected_faces import Face, described
from app.imaging.face_boxes import draw_faces


class DetectFacesRequest(Request):
    """A picture, and what looks for faces in it."""

    image: SeenImage
    faces_model: FacesModel = "auto"
    draw: DrawFaces = True


def run(request: DetectFacesRequest, context: Context) -> Result:
    """The faces, largest first: their places in the list are the numbers that `face_index` takes."""
    image = context.image(request.image)
    with context.faces(request.faces_model) as reader:
        faces = reader.all(image)
    images = [draw_faces(image, faces)] if request.draw and faces else []
    return Result(images=images, data={"size": list(image.size), "faces": in_words(faces)})


def in_words(faces: list[Face]) -> list[dict[str, Any]]:
    """Box, score, size and the five points of each face, in the picture's pixels."""
    return [
        {
            **told,
            "size": [round(side) for side in face.size],
            "keypoints": [[round(float(place), 1) for place in point] for point in face.keypoints],
        }
        for told, face in zip(described(faces), faces, strict=True)
    ]


DETECT_FACES = Capability(
    name="detect-faces",
    title="Detect faces",
    tab="enhance",
    group_title="Enhance",
    summary="Find the faces of a picture and number them, largest first.",
    request=DetectFacesRequest,
    run=run,
    additions={"faces_model": "faces"},
    gives_pictures=False,
)
