"""A tour without a browser: start the service, drive it over REST, and write one labelled contact sheet.

It uses whatever model `auto` means on this machine (pocket on a fresh one) and a real photo from scikit-image.
"""

import argparse
import base64
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from PIL import Image, ImageDraw, ImageFont
from skimage import data

CELL, GAP, CAPTION = 256, 14, 58
INK, PAPER = (30, 32, 38), (250, 250, 248)


@contextlib.contextmanager
def running_service(home: Path) -> Iterator[str]:
    """The address of a service of our own on a free port; it is stopped on leaving."""
    environment = {**os.environ, "EIS_HOME": str(home), "EIS_UI": "false", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                yield found.group()
                return
        raise SystemExit("the service did not start")
    finally:
        process.terminate()
        process.wait(timeout=60)


def data_uri(image: Image.Image) -> str:
    """The picture as a base64 data URI, one of the four ways in."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Tour:
    """Calls the service and keeps each picture with its label."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.cells: list[tuple[str, Image.Image]] = []

    def show(self, label: str, image: Image.Image) -> Image.Image:
        """Put a picture on the sheet."""
        self.cells.append((label, image))
        return image

    def draw(self, label: str, capability: str, **request: object) -> Image.Image:
        """Run one capability and put its first picture on the sheet."""
        begun = time.perf_counter()
        answer = self.client.post(f"/api/v1/{capability}", json=request, params={"wait": 600})
        if answer.status_code != 200:
            raise SystemExit(f"{capability}: {answer.status_code} {answer.text[:500]}")
        job = answer.json()
        first = job["result"]["images"][0]
        picture = Image.open(io.BytesIO(self.client.get(first["url"]).content), formats=["PNG"])
        seconds = time.perf_counter() - begun
        print(f"{capability:16} {job['model']}, seed {first['seed']}, {seconds:.1f} s: {label}")
        return self.show(f"{label}\n{capability}, seed {first['seed']}, {seconds:.1f} s", picture.convert("RGB"))


def ellipse_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask of this size whose ellipse is white: white is repainted."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def take_tour(tour: Tour) -> None:
    """Every capability once, and the ways of giving it a picture."""
    car = tour.draw("a red car, blue background", "text-to-image", prompt="a red car, blue background", seed=7)
    tour.draw("two things", "text-to-image", prompt="a yellow star above a green boat, white background", seed=3)
    tour.draw(
        "a portrait",
        "text-to-image",
        prompt="portrait of a smiling woman with long brown hair, green eyes and glasses",
        seed=5,
    )
    tour.draw(
        "weighted words", "text-to-image", prompt="a (purple:1.3) umbrella on the left, yellow background", seed=11
    )
    tour.draw(
        "the car, made anew",
        "image-to-image",
        prompt="a green car, yellow background",
        image=data_uri(car),
        strength=0.8,
        seed=7,
    )
    width, height = car.size
    mask = ellipse_mask(car.size, (width // 5, height // 4, width * 4 // 5, height * 4 // 5))
    tour.show("the mask: white is repainted", mask.convert("RGB"))
    tour.draw(
        "repainted inside the mask",
        "inpaint",
        prompt="a yellow star, blue background",
        image=data_uri(car),
        mask_image=data_uri(mask),
        padding_mask_crop=None,
        seed=2,
    )
    tour.draw(
        "wider on both sides",
        "outpaint",
        prompt="a red car, blue background",
        image=data_uri(car),
        left=width // 4,
        right=width // 4,
        seed=4,
    )
    photo = tour.show("a real photo (NASA, public domain)", Image.fromarray(data.astronaut()))
    uploaded = tour.client.post("/api/v1/images", files={"image": ("photo.png", _png(photo), "image/png")})
    uploaded.raise_for_status()
    mask = ellipse_mask(photo.size, (360, 250, 500, 400))
    painted = tour.draw(
        "a thing put into the photo",
        "inpaint",
        prompt="a red heart, white background",
        image=uploaded.json()["id"],
        mask_image=data_uri(mask),
        padding_mask_crop=16,
        seed=9,
    )
    outside = Image.composite(Image.new("RGB", photo.size), painted, mask)
    if outside.tobytes() != Image.composite(Image.new("RGB", photo.size), photo, mask).tobytes():
        raise SystemExit("inpaint changed the photo outside its mask")
    tour.draw(
        "a second pass at twice the size",
        "text-to-image",
        prompt="a big orange fish, cyan background",
        second_pass_scale=2,
        second_pass_strength=0.4,
        seed=21,
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def contact_sheet(cells: list[tuple[str, Image.Image]], columns: int = 4) -> Image.Image:
    """All pictures with their labels on one sheet."""
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (label, image) in enumerate(cells):
        left, top = GAP + index % columns * (CELL + GAP), GAP + index // columns * (CELL + CAPTION + GAP)
        fitted = image.copy()
        scale = CELL / max(fitted.size)
        size = (max(1, round(fitted.width * scale)), max(1, round(fitted.height * scale)))
        fitted = fitted.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2))
        text = "\n".join(line for part in label.split("\n") for line in textwrap.wrap(part, 38))
        pen.multiline_text((left, top + CELL + 6), text, fill=INK, font=font, spacing=3)
    return sheet


def main() -> None:
    """Take the tour and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("artifacts/tour.png"), help="where the sheet is written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, running_service(Path(home)) as address:
        print(f"service at {address}")
        with httpx.Client(base_url=address, timeout=660) as client:
            tour = Tour(client)
            take_tour(tour)
            jobs = client.get("/api/v1/jobs").json()
            print(f"{jobs['total']} jobs, all {', '.join({job['status'] for job in jobs['jobs']})}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(tour.cells).save(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
