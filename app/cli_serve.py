"""`eis serve`: the page and the API in this process, one worker process for each device."""

import argparse
from collections.abc import Sequence

from app.collector import collector_at_rest


def declare(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """The flags; everything else is a setting."""
    parser.add_argument("--host", help="address to listen on (EIS_HOST, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (EIS_PORT, 7860)")
    parser.add_argument("--no-ui", action="store_const", const=False, dest="ui", help="serve the API alone (EIS_UI)")
    parser.set_defaults(act=act)


def act(options: argparse.Namespace) -> int:
    with collector_at_rest():
        from app.cli_settings import read_settings

        settings = read_settings(host=options.host, port=options.port, ui=options.ui)
        from app.main import serve

    return serve(settings)
