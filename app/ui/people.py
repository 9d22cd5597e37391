"""What the stage shows of people: the faces to choose from, how alike each result is, and the person beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from app.core.jobs import Job
from app.errors import FaceNotChosen
from app.ui.wording import badge, picture_url, upper

THRESHOLDS = (0.5, 0.3)
"""Cosines of two vectors from which faces count as one person's, and as alike, where an old answer does not say."""

CHOOSABLE = {"face_image", "face_images", "image", "pose_image"}
"""Fields of a picture for whose faces a wish has a number."""

SAYING_WHICH = {
    "face_image": ("face_index", "face_box"),
    "face_images": ("face_images_index",),
    "image": ("target_face_index", "face_index", "face_box"),
    "pose_image": ("pose_face_index",),
}
"""Fields that say which face of a picture is meant; where one did, the refusal has more to tell than to choose one."""

MEANING = "The cosine of the two faces' vectors: 1 is the same picture, strangers are around 0."
HIGHEST = 420
"""Of the picture in which a face is to be chosen, in pixels."""


@dataclass(frozen=True)
class Choice:
    """A refusal because of several faces: the request's field with the picture, its id and size, and what was seen."""

    field: str
    image: str
    size: tuple[int, int]
    faces: Sequence[Mapping[str, Any]]


def refused_picture(job: Job) -> tuple[str, str] | None:
    """(field, id) of the picture in which the caller has to choose a face; None for any other end of a job."""
    error = job.error or {}
    details = error.get("details") or {}
    field = str(details.get("field"))
    image = job.request.get(field)
    if isinstance(image, list) and isinstance(details.get("number"), int):
        image = image[details["number"]]
    is_choice = error.get("code") == FaceNotChosen.code and bool(details.get("faces")) and field in CHOOSABLE
    return (field, image) if is_choice and isinstance(image, str) else None


def choice_of(job: Job, size: tuple[int, int]) -> Choice:
    """The choice that a refused job asks for; `size` is that of its picture."""
    field, image = refused_picture(job)
    return Choice(field, image, size, job.error["details"]["faces"])


def which_face(job: Job, choice: Choice, chosen: int | None = None) -> str:
    """The refused job's picture with a button for each face; a click reports `face` with its number."""
    width, height = choice.size
    frames = "".join(
        frame_of(face["box"], number, choice, job.id, number == chosen) for number, face in enumerate(choice.faces)
    )
    if chosen is None:
        stated = any(job.request.get(name) not in (None, []) for name in SAYING_WHICH[choice.field])
        count = len(choice.faces)
        ask = f"The picture shows {count} faces: click the one that is meant."
        title, text = "Which face?", job.error["message"] if stated or count < 2 else ask
    else:
        title, text = f"Face {chosen} is chosen", "Press Generate to go on with it."
    return (
        f'<div class="eis-frame" data-job="{job.id}"><div class="eis-which"><div class="eis-empty" role="alert">'
        f'<strong>{title}</strong><span>{escape(text)}</span></div><div class="eis-faces" '
        f'style="aspect-ratio:{width}/{height};width:min(100%,{round(HIGHEST * width / height)}px)">'
        f'<img src="{picture_url(choice.image)}" alt="The picture with its faces">{frames}</div></div></div>'
    )


def frame_of(box: Sequence[float], number: int, choice: Choice, job: str, is_chosen: bool) -> str:
    """One face's button, in shares of the picture and inside it."""
    width, height = choice.size
    left, right = (min(max(edge, 0), width) for edge in (box[0], box[2]))
    top, bottom = (min(max(edge, 0), height) for edge in (box[1], box[3]))
    places = {"left": left / width, "top": top / height, "width": (right - left) / width,
              "height": (bottom - top) / height}  # fmt: skip
    style = ";".join(f"{name}:{100 * place:.2f}%" for name, place in places.items())
    return (
        f'<button type="button" class="eis-face" data-action="face" data-job="{job}" data-number="{number}" '
        f'aria-label="Face {number}" aria-pressed="{str(is_chosen).lower()}" style="{style}">'
        f"<span>{number}</span></button>"
    )


def alike(value: float | None, thresholds: tuple[float, float] = THRESHOLDS) -> str:
    """How alike a face is to the one that was wanted, as a word and a number in a frame."""
    same, similar = thresholds
    if value is None:
        return badge("no face seen", "eis-wait")
    word, tone = ("same face", "eis-good") if value >= same else ("similar face", "eis-wait")
    if value < similar:
        word, tone = "another face", "eis-bad"
    return f'<span title="{MEANING}">{badge(f"{word} {value:.2f}", tone)}</span>'


@dataclass(frozen=True)
class People:
    """What a finished job says about the people on its pictures; all of it is empty for other jobs.

    `reference` is the id of the person's picture, where it is still there.
    """

    poses: Sequence[str] = ()
    similarity: Sequence[float | None] = ()
    thresholds: tuple[float, float] = THRESHOLDS
    sheet: int | None = None
    faces: int | None = None
    reference: str | None = None

    @classmethod
    def of(cls, job: Job, reference: str | None = None) -> "People":
        """From the answer's data."""
        data = (job.result or {}).get("data") or {}
        faces = data.get("faces")
        return cls(
            tuple(data.get("poses") or ()),
            tuple(data.get("identity_similarity") or ()),
            tuple(data.get("identity_thresholds") or THRESHOLDS),
            data.get("grid"),
            len(faces) if isinstance(faces, list) else None,
            reference,
        )

    def name(self, at: int) -> str:
        """What the picture at this place shows, in a word or two."""
        if at == self.sheet:
            return "All poses"
        return upper(str(self.poses[at])).rstrip(".") if at < len(self.poses) else ""

    def caption(self, at: int) -> str:
        """The line under a picture: its pose, how alike it is, and the button that puts the person beside it."""
        parts = [badge(escape(self.name(at)))] if self.name(at) else []
        if at < len(self.similarity):
            parts.append(alike(self.similarity[at], self.thresholds))
        if self.faces is not None:
            parts.append(badge("one face" if self.faces == 1 else f"{self.faces} faces"))
        if self.reference and self.similarity:
            parts.append(
                '<button type="button" class="eis-button" data-client="compare" aria-pressed="false">'
                "Beside the person</button>"
            )
        return f'<div class="eis-alike">{"".join(parts)}</div>' if parts else ""

    def beside(self) -> str:
        """The person's picture, hidden until it is asked for."""
        if not (self.reference and self.similarity):
            return ""
        source = picture_url(self.reference)
        return f'<img class="eis-beside" hidden loading="lazy" data-client="zoom" src="{source}" alt="The person">'

    def thumbnail(self, at: int, button: str) -> str:
        """A thumbnail with its pose below it."""
        name = self.name(at)
        return f'<div class="eis-captioned">{button}<span>{escape(name)}</span></div>' if name else button


def reference_in(request: Mapping[str, Any]) -> str | None:
    """The id of the picture with the person that a wish was about."""
    found = request.get("face_image") or request.get("image")
    return found if isinstance(found, str) else None
