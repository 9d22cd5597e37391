"""`eis pocket train | check | train-identity | train-tagger | ...`: the embedded model's own commands and flags."""

import argparse
import importlib
from collections.abc import Sequence

from app.errors import InvalidRequest

COMMANDS = {
    "train": ("train the embedded model again from nothing", "app.pocket.train"),
    "check": ("draw prompts of its grammar and measure the pictures", "app.pocket.check"),
    "train-decoder": ("let the decoder of its autoencoder learn on", "app.pocket.train_decoder"),
    "train-steering": ("train the LoRA with which it follows what PuLID's tokens say", "app.pocket.train_steering"),
    "train-identity": ("train what keeps a face on it", "app.pocket.train_identity"),
    "train-tagger": ("train what names the things in its pictures", "app.pocket.train_tagger"),
    "check-identity": ("draw unseen people anew and measure who is seen", "app.pocket.check_identity"),
    "check-instantid": ("draw unseen people in poses that keypoints tell", "app.pocket.check_instantid"),
    "train-ip-adapter": ("train its IP-Adapter and the encoder that it reads", "app.pocket.train_ip_adapter"),
    "check-ip-adapter": ("draw after pictures and measure whose facts are there", "app.pocket.check_ip_adapter"),
    "train-control": ("train its ControlNet", "app.pocket.train_control"),
    "check-control": ("draw after maps and measure whose edges are there", "app.pocket.check_control"),
    "train-edits": ("train its InstructPix2Pix", "app.pocket.train_edits"),
    "check-edits": ("change pictures by wishes and measure what changed", "app.pocket.check_edits"),
}


def declare(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Both commands hand everything after their name on, `--help` included."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (summary, module) in COMMANDS.items():
        child = commands.add_parser(name, help=summary, add_help=False, prefix_chars="\0")
        child.add_argument("rest", nargs="*")
        child.set_defaults(act=act, module=module)


def act(options: argparse.Namespace) -> int:
    try:
        module = importlib.import_module(options.module)
    except ModuleNotFoundError as error:
        raise InvalidRequest(f"This installation has no {error.name}.") from None
    return module.main(options.rest) or 0
