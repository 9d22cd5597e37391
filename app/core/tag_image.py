"""Tags: name what pictures show, by category and with scores, as data and as one line that serves as a prompt."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from app.core import tag_fields as fields
from app.core.capability import Capability, Context, Request, Result
from app.core.identity_fields import SeenImage
from app.imaging.tags import Tagged, Wish, tagged
from app.models.catalog_taggers import POCKET_TAGGER, TAG


class TagImageRequest(Request):
    """Pictures, and which of their tags are taken."""

    image: SeenImage
    further_images: fields.TaggedImages = ()
    tagger: fields.Tagger = "auto"
    threshold: fields.Threshold = 0.35
    character_threshold: fields.CharacterThreshold = 0.85
    mean_cut: fields.MeanCut = False
    character_mean_cut: fields.CharacterMeanCut = False
    exclude: fields.Exclude = ()
    prepend: fields.Prepend = ()
    underscores: fields.Underscores = False
    escape_brackets: fields.EscapeBrackets = False
    rating_in_caption: fields.RatingInCaption = False

    @property
    def references(self) -> tuple[str, ...]:
        """Every picture, in order."""
        return (self.image, *self.further_images)

    @property
    def wish(self) -> Wish:
        """What of it concerns scores and words."""
        return Wish(
            threshold=None if self.mean_cut else self.threshold,
            character_threshold=None if self.character_mean_cut else self.character_threshold,
            underscores=self.underscores,
            escape=self.escape_brackets,
            exclude=self.exclude,
            prepend=self.prepend,
            rating=self.rating_in_caption,
        )


def run(request: TagImageRequest, context: Context) -> Result:
    """Each picture's tags in the order of the pictures; they are opened one by one and go through in batches."""
    references, pictures = request.references, []
    context.progress(0, len(references))

    def opened() -> Iterator[Image.Image]:
        for reference in references:
            yield context.image(reference)

    with context.tagger(request.tagger) as tagger:
        for number, scores in enumerate(tagger.scores(opened())):
            found = tagged(scores, tagger.labels, request.wish)
            pictures.append({"image": references[number], **described(found)})
            context.progress(number + 1, len(references))
    if not request.further_images:
        context.tell_stage("caption", pictures[0]["caption"] or "No tag reached the threshold.")
    data = {"tagger": request.tagger, "pictures": pictures, "stages": list(context.stages)}
    return Result(data=data, notes=notes(request))


def described(found: Tagged) -> dict[str, Any]:
    """One picture's tags as JSON: name and score by category, the rating, the caption."""
    return {
        "caption": found.caption,
        "rating": found.rating,
        "tags": {
            category: [{"tag": name, "score": score} for name, score in tags] for category, tags in found.tags.items()
        },
        "ratings": found.ratings,
    }


def notes(request: TagImageRequest) -> list[str]:
    """What a person should know of the tags."""
    if request.tagger != POCKET_TAGGER:
        return []
    return [
        "Pocket's tagger knows the things and people of pocket's own world and sees them in every picture. "
        "`eis models pull wd-eva02-large-tagger-v3` fetches one that was trained on drawings of all kinds."
    ]


TAG_IMAGE = Capability(
    name="tag-image",
    title="Tags",
    summary="Name what pictures show as tags with scores, and as a caption that serves as a prompt.",
    request=TagImageRequest,
    run=run,
    additions={"tagger": TAG},
    gives_pictures=False,
)
