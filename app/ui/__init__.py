"""The browser face: a Gradio page derived from the catalog.

Gradio reads its variables when it is imported, so they are set here, before any module of the page imports it.
"""

import os
import warnings

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# Gradio brings an audio library that complains at its import about a program which the page never needs.
warnings.filterwarnings("ignore", message="Couldn't find ffmpeg", category=RuntimeWarning)
