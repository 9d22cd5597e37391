"""Strangers' pictures, decoded in a short-lived child process (`decode_child.py`): the asking side.

A child that dies, hangs or grows is an error for the one who sent the picture, never a crash of this process.
"""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Literal, NamedTuple

import PIL

from app.errors import TooLarge, UnreadableImage, error_class

_START = """
import sys
sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]
from app.imaging.decode_child import main
main()
"""
_ROOT = str(Path(__file__).resolve().parents[2])
_PILLOW = str(Path(PIL.__file__).resolve().parents[1])
_TIME_SIGNALS = {-signal.SIGXCPU, -signal.SIGKILL}


class Decoded(NamedTuple):
    """What the child said about the picture that it wrote."""

    width: int
    height: int
    media_type: str


def decode_to_png(
    data: bytes, output: IO[bytes], *, kind: Literal["image", "mask"], max_pixels: int, seconds: float
) -> Decoded:
    """Write the picture in `data` to the open file `output` as a clean PNG.

    `UnreadableImage` when it is no picture or a broken one; `TooLarge` when it has more than `max_pixels`, or takes
    more time or memory to decode than it may.
    """
    # -I -S: no user's site folder, no .pth files, nothing from the environment; it also halves the start.
    command = [sys.executable, "-I", "-S", "-c", _START, _ROOT, _PILLOW]
    command += [kind, str(max_pixels), str(math.ceil(seconds)), str(output.fileno())]
    try:
        child = subprocess.run(
            command,
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(output.fileno(),),
            timeout=2 * seconds,  # the CPU seconds are counted in the child; a busy machine takes longer by the clock
            env={},
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TooLarge(f"The picture takes longer than {seconds:g} seconds to decode.") from None
    if child.returncode in _TIME_SIGNALS:
        raise TooLarge(f"The picture takes longer than {seconds:g} seconds to decode.")
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        raise UnreadableImage("The picture cannot be decoded.", reason="broken") from None
    if "code" in answer:
        raise error_class(answer["code"])(answer["message"], **answer.get("details", {}))
    return Decoded(**answer)
