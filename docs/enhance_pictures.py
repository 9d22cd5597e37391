"""Draw the picture of docs/enhance.md: a part of scikit-image's astronaut by Lanczos and by Real-ESRGAN's network.

`python docs/enhance_pictures.py FILE`, where FILE is `realesr-animevideov3-x4.safetensors` or another upscaler.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.models import upscalers  # noqa: E402
from app.models.catalog import CATALOG  # noqa: E402
from app.models.device import TorchDevice  # noqa: E402

PART = (170, 60, 270, 160)
GAP = 6


def main() -> None:
    """Write docs/images/enhance-upscale.webp."""
    from skimage import data

    part = Image.fromarray(np.asarray(data.astronaut())).crop(PART)
    size = (part.width * 4, part.height * 4)
    upscaler = upscalers.load(CATALOG[0], Path(sys.argv[1]), TorchDevice("cpu", "float32"))
    upscaler.place()
    made = upscaler.at_work(nullcontext, lambda: None)(part, size).image
    sheet = Image.new("RGB", (2 * size[0] + GAP, size[1]), "white")
    sheet.paste(part.resize(size, Image.Resampling.LANCZOS), (0, 0))
    sheet.paste(made, (size[0] + GAP, 0))
    sheet.save(ROOT / "docs" / "images" / "enhance-upscale.webp", quality=86)


if __name__ == "__main__":
    main()
