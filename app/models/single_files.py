"""What a single `.safetensors` checkpoint leaves out: the components' configurations and CLIP's tokenizer.

Both ship with the package, so that opening such a file never asks a network. A `config` folder beside the file
(diffusers layout, no weights) takes their place: that is how a checkpoint of another shape is opened.
"""

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

LAYOUTS = Path(__file__).with_name("layouts")
START, END = "<|startoftext|>", "<|endoftext|>"


def config_folder(file: Path, family: str) -> Path:
    """The folder of configurations that fits this file."""
    beside = file.parent / "config"
    return beside if (beside / "model_index.json").is_file() else LAYOUTS / family


@lru_cache(maxsize=1)
def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    text = gzip.decompress((LAYOUTS / "clip_tokenizer" / "merges.txt.gz").read_bytes()).decode("utf-8")
    merges = [tuple(line.split(" ")) for line in text.splitlines()]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in printable]
    letters += [chr(256 + number) for number in range(256 - len(printable))]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges] + [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def clip_tokenizer(*, pad_token: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer as Stable Diffusion uses it; SDXL's second one pads with `!`."""
    vocabulary, merges = _clip_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
        model_max_length=77,
    )


def tokenizers(config: Path) -> dict[str, CLIPTokenizer]:
    """Name of the component -> tokenizer: from the configuration folder where it brings one, else CLIP's own."""
    index: dict[str, Any] = json.loads((config / "model_index.json").read_text("utf-8"))
    found = {}
    for name, pad_token in (("tokenizer", END), ("tokenizer_2", "!")):
        if name not in index:
            continue
        if (config / name).is_dir():
            found[name] = CLIPTokenizer.from_pretrained(config / name, local_files_only=True)
        else:
            found[name] = clip_tokenizer(pad_token=pad_token)
    return found
