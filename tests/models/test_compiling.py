"""Compiled blocks: the same picture, kept on disk, out of the way of additions, and clear about a missing compiler."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import DependencyMissing
from app.models import compiling
from app.models.runtime import open_runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not any(map(shutil.which, compiling.COMPILERS)), reason="no C++ compiler is installed")
def test_compiled_blocks_draw_the_same_picture_and_step_aside_for_additions():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/compiled_blocks.py"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and "1 passed" in ended.stdout, ended.stdout[-5000:]


def test_a_missing_compiler_is_told(library, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(DependencyMissing, match=r"EIS_COMPILE needs a C\+\+ compiler"):
        open_runtime(device="cpu", library=library, compile=True)
    open_runtime(device="cpu", library=library).close()
