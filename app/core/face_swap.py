"""Another person's face on a picture: cut out around the face, painted anew in part, and laid back by its parts.

Outside the swapped face's own parts every byte of the picture stays.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from app.core.attachments import Attachment, FaceReference
from app.core.capability import Context, Result
from app.core.drawing import draw_each
from app.core.identity import Placement, likeness, whole_numbers
from app.imaging.face_paste import face_region, paste_face, soft_mask, swap_mask, working_size
from app.imaging.masks import cover_cells
from app.imaging.sizes import lost_strength


def swap(
    request: Any,
    context: Context,
    model: str,
    faces: Sequence[FaceReference],
    attachments: Sequence[Attachment],
    *,
    keeps_pose: bool = False,
) -> Result:
    """The pictures of a swap. `faces` are the new person's; `keeps_pose` draws the old face's keypoints too."""
    image = context.image(request.image)
    target = FaceReference(image, request.target_face_index)
    with context.faces(model) as reader:
        face = reader.find(target)
        mask = swap_mask(*reader.parts(target), image.size)
    region = face_region(face.box, image.size)
    soft = soft_mask(mask, face.box)
    with context.borrow(request.model, task="inpaint", attachments=attachments, **request.additions()) as pipeline:
        size = working_size(region, max(pipeline.default_size), pipeline.size_multiple)
        control = {}
        if keeps_pose:
            own = (region[2] - region[0], region[3] - region[1])
            control["control_image"] = [Placement(face.keypoints - region[:2], (0, 0, *own), own).on(size).drawing()]
        painted = draw_each(
            request,
            context,
            pipeline,
            image=image.crop(region).resize(size, Image.Resampling.LANCZOS),
            mask_image=cover_cells(mask.crop(region).resize(size, Image.Resampling.BILINEAR), pipeline.size_multiple),
            width=size[0],
            height=size[1],
            strength=request.strength,
            **control,
        )
    images = [paste_face(image, picture, region, soft) for picture in painted]
    with context.faces(model) as reader:
        alike = likeness(reader, faces[0], images, [face.box] * len(images))
    data = {"box": list(region), "face": whole_numbers(face), "work_size": list(size), **alike}
    notes = lost_strength(request.num_inference_steps, request.strength)
    return Result(images=images, seeds=request.seeds, data=data, notes=notes)
