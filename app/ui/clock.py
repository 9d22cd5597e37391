"""A tab's clock: what the tab shows is looked at again while it is open, and only then."""

from collections.abc import Sequence

import gradio as gr

from app.ui.panel import QUIET


def run_while_open(timer: gr.Timer, tab: gr.Tab, others: Sequence[gr.Tab]) -> None:
    """Start the clock when the tab is opened, and stop it when one of the others is."""
    tab.select(lambda: gr.Timer(active=True), outputs=timer, **QUIET)
    for other in others:
        other.select(lambda: gr.Timer(active=False), outputs=timer, **QUIET)
