"""A child's own peak of memory is its own, whatever its parent holds."""

import subprocess
import sys

PROGRAM = """
from tests.own_memory import peak
before = peak()
held = bytearray(200 * 2**20)
print(before, peak() - before)
"""


def test_a_child_tells_its_own_peak_and_not_its_parents():
    held = bytearray(600 * 2**20)
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert len(held) == 600 * 2**20
    before, grown = map(int, run.stdout.split())
    assert before < 200 * 2**20
    assert 195 * 2**20 < grown < 240 * 2**20
