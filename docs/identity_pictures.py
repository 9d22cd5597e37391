"""Draw the pictures of docs/identity.md: a swap's region, mask, colour match and paste on scikit-image's photos.

EIS_TEST_WEIGHTS names the folder of the published RetinaFace (MobileNet) that finds and lines up the face. No model
paints here: a recoloured mirror image and a cat stand in for a painted face, and an ellipse for the parsed one.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.imaging import face_paste  # noqa: E402
from app.imaging.keypoints import draw_keypoints  # noqa: E402
from app.models import faces  # noqa: E402
from app.models.device import TorchDevice  # noqa: E402

TILE = 216
GAP = 6
CAT_POINTS = np.array([(172, 115), (318, 137), (262, 236)], dtype=np.float32)
"""Eyes and nose of scikit-image's Chelsea."""


def analyser() -> faces.FaceAnalyser:
    """RetinaFace alone: no pack is needed to find a face and line it up."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(os.environ["EIS_TEST_WEIGHTS"]) / "retinaface-mobile0.25.safetensors"
        shutil.copy(source, Path(name) / "retinaface_mobile0.25.safetensors")
        return faces.open_analyser([Path(name)], TorchDevice("cpu"))


def parsed() -> np.ndarray:
    """Parts of an aligned crop as a parser would give them for a face that looks ahead: skin alone."""
    parts = np.zeros((512, 512), dtype=np.uint8)
    cv2.ellipse(parts, (257, 310), (118, 152), 0, 0, 360, 1, -1)
    return parts


def relit(image: Image.Image) -> Image.Image:
    """A mirror image in another light: what a model might paint."""
    values = np.asarray(ImageOps.mirror(image), dtype=np.float32) / 255
    values = np.clip(values ** np.array([0.9, 1.25, 1.7]) * 0.8 + 0.02, 0, 1)
    return Image.fromarray((values * 255).astype(np.uint8))


def row(tiles: list[Image.Image]) -> Image.Image:
    """Tiles side by side on white."""
    sheet = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TILE), "white")
    for number, tile in enumerate(tiles):
        square = tile.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(square, (number * (TILE + GAP), 0))
    return sheet


def main() -> None:
    """Write docs/images/identity-*.webp."""
    from skimage import data

    astronaut, cat = Image.fromarray(data.astronaut()), Image.fromarray(data.chelsea())
    look = analyser()
    face = look.find(astronaut)
    aligned = look.align(astronaut, face)
    region = face_paste.face_region(face.box, astronaut.size)
    hard = face_paste.swap_mask(parsed(), aligned.matrix, astronaut.size)
    mask = face_paste.soft_mask(hard, face.box)

    seen = astronaut.copy()
    pen = ImageDraw.Draw(seen)
    pen.rectangle(region, outline=(255, 200, 0), width=4)
    pen.rectangle(face.box, outline=(0, 230, 255), width=4)
    for x, y in face.keypoints:
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(255, 0, 120))
    rows = {"region": [seen, astronaut.crop(region), aligned.image, draw_keypoints(astronaut.size, face.keypoints)]}

    # The mirror image and the cat are moved so that their faces lie on the face.
    middle = face.box[0] + face.box[2]
    light = relit(astronaut).transform(astronaut.size, Image.Transform.AFFINE, (1, 0, 512 - middle, 0, 1, 0))
    onto, _ = cv2.estimateAffinePartial2D(CAT_POINTS, face.keypoints[:3])
    animal = Image.fromarray(cv2.warpAffine(np.asarray(cat), onto, astronaut.size, borderMode=cv2.BORDER_REFLECT))
    closer = face_paste.face_region(face.box, astronaut.size, factor=1.5)
    for name, whole in (("light", light), ("cat", animal)):
        painted = whole.crop(region)
        plain = astronaut.copy()
        plain.paste(painted, region[:2], mask=mask.crop(region))
        pasted = face_paste.paste_face(astronaut, painted, region, mask)
        outside = np.asarray(mask) == 0
        assert np.array_equal(np.asarray(pasted)[outside], np.asarray(astronaut)[outside])
        rows[name] = [part.crop(closer) for part in (whole, mask, plain, pasted)]

    for name, tiles in rows.items():
        file = ROOT / "docs" / "images" / f"identity-{name}.webp"
        row(tiles).save(file, quality=82, method=6)
        print(file, file.stat().st_size)
    print(f"alignment error {faces.alignment_error(aligned):.2f} pixels of 512")


if __name__ == "__main__":
    main()
