"""Weights become live things here; with `app/pocket`, the only place where torch is imported.

Importing this package, which every path to torch does first, asks OpenMP's threads to sleep while they wait for each
other. By default they spin, and where another process wants the same cores (the front, a second worker, a desktop) each
step then takes ten times as long: 25 s instead of 3 s for a picture of pocket on two shared cores.

It also keeps a start quiet: what torch and diffusers say of versions of torchao concerns checkpoints in torchao's own
format, which nobody opens here, and would stand above the address of the page at every start.
"""

import logging
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
