"""Upscalers and face restorers recognised: the common ones by their names, any other that spandrel knows by opening it.

Which of its forty networks a file holds, only spandrel can say, and it stands on torch: it is asked in a child process,
and only about files that begin like a picture network and are nothing else that is known.
"""

import json
import subprocess
import sys
from pathlib import Path

from app.models.catalog_enhancing import RESTORE_FACE, RESTORER_LOADER, UPSCALE, UPSCALER_LOADER
from app.models.inspection import Header, Inspection

WRAPPERS = ("params_ema.", "params.")
PICTURE_CHANNELS = {1, 3, 12, 48}
"""What a first convolution of a picture network reads: a picture, or one folded by two or by four."""
FIRST = ("body.0.weight", "conv_first.weight", "model.0.weight")
DENSE = frozenset({"body.0.rdb1.conv1.weight", "model.1.sub.0.RDB1.conv1.0.weight"})
"""A dense block's first convolution in Real-ESRGAN's names and in those of ESRGAN before it."""
SECONDS = 300
LARGEST = 2 * 2**30
_START = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from app.models.inspect_networks import main
main()
"""
_ROOT = str(Path(__file__).resolve().parents[2])


def recognise(header: Header, stem: str) -> Inspection | None:
    """Real-ESRGAN's two networks, ESRGAN, GFPGAN and RestoreFormer by their names; None for any other."""
    shapes = {_plain(name): shape for name, shape in header.shapes.items()}
    names = set(shapes)
    if {"toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight"} <= names:
        return restorer()
    if {"quantize.embedding.weight", "quant_conv.weight", "decoder.conv_out.weight"} <= names:
        return restorer()
    first = next((shapes[name] for name in FIRST if name in shapes), None)
    is_compact = {"body.0.weight", "body.2.weight"} <= names and len(shapes.get("body.1.weight", ())) == 1
    is_dense = bool(DENSE & names)
    if (is_compact or is_dense) and first is not None and len(first) == 4 and first[1] in PICTURE_CHANNELS:
        return upscaler()
    return None


def recognise_by_opening(path: Path, header: Header) -> Inspection | None:
    """What spandrel takes the file for; None where it is no network that makes or restores pictures."""
    begins = any(len(shape) == 4 and shape[1] in PICTURE_CHANNELS for shape in header.shapes.values())
    if not begins or path.stat().st_size > LARGEST:
        return None
    command = [sys.executable, "-I", "-c", _START, _ROOT, str(path)]
    try:
        run = subprocess.run(command, capture_output=True, timeout=SECONDS, env={}, cwd="/", check=False)
        purpose = json.loads(run.stdout)["purpose"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return {"SR": upscaler(), "Restoration": upscaler(), "FaceSR": restorer()}.get(purpose)


def upscaler() -> Inspection:
    """A file that makes pictures larger, or clears them."""
    return Inspection("upscaler", "other", (UPSCALE,), options={"layout": "single-file"}, loader=UPSCALER_LOADER)


def restorer() -> Inspection:
    """A file that restores faces."""
    return Inspection("restorer", "other", (RESTORE_FACE,), options={"layout": "single-file"}, loader=RESTORER_LOADER)


def _plain(name: str) -> str:
    return next((name.removeprefix(wrapper) for wrapper in WRAPPERS if name.startswith(wrapper)), name)


def main() -> None:
    """`FILE`: one line of JSON says what spandrel takes it for."""
    import importlib

    # By name: whoever recognises files must not import what opens them.
    upscalers = importlib.import_module("app.models.upscalers")
    catalog = importlib.import_module("app.models.catalog_enhancing")
    print(json.dumps({"purpose": upscalers.open_network(catalog.ENHANCING[0], Path(sys.argv[1])).purpose}))
