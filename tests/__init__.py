"""The proofs.

Several processes share the cores here, so OpenMP's threads sleep while they wait (see `app.models`), whichever test
imports torch first.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
