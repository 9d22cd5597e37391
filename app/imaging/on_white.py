"""What is transparent, shown on white paper."""

from PIL import Image


def flat(image: Image.Image) -> Image.Image:
    """The picture (PIL RGB or RGBA, or what converts to RGB) as RGB; what is transparent shows white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white
