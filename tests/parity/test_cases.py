"""The cases themselves: where they are found, and what a folder without any means."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.parity import cases, weights

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {"pulid", "pulid_v1", "eva02_clip", "instantid", "ecomid", "step1x_edit"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env={**os.environ, "EIS_PARITY": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip


def test_every_published_case_is_there():
    assert set(cases.KNOWN) == PUBLISHED
    assert cases.found(cases.source())


def test_a_folder_without_cases_is_a_failure(tmp_path):
    with pytest.raises(LookupError, match="no parity case"):
        cases.found(tmp_path)
    with pytest.raises(LookupError, match="no parity case"):
        cases.found(tmp_path / "absent")
    answer = run(tmp_path, "tests/parity/test_eva02_clip.py")
    assert answer.returncode != 0
    assert answer.stdout.rstrip().splitlines()[-1].startswith("0 parity cases passed: no parity case is there")


def test_a_case_that_no_test_knows_is_a_failure(tmp_path):
    (tmp_path / "pulid_v3").mkdir()
    (tmp_path / "pulid_v3" / "case.json").write_text("{}")
    with pytest.raises(LookupError, match="pulid_v3"):
        cases.found(tmp_path)


def test_a_folder_with_the_bare_files_is_enough_and_is_what_counts(tmp_path):
    if os.environ.get("EIS_PARITY"):
        pytest.skip("this is about the repository's own cases")
    (tmp_path / "eva02_clip").mkdir()
    for file in ("case.json", "expected.safetensors"):
        shutil.copy(cases.DATA / "eva02_clip" / file, tmp_path / "eva02_clip" / file)
    answer = run(tmp_path, "tests/parity/test_eva02_clip.py")
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.rstrip().splitlines()[-1] == "1 of 1 parity cases passed: eva02_clip"

    text = (tmp_path / "eva02_clip" / "case.json").read_text()
    (tmp_path / "eva02_clip" / "case.json").write_text(text.replace('"salt": ""', '"salt": "another"'))
    answer = run(tmp_path, "tests/parity/test_eva02_clip.py")
    assert answer.returncode != 0
    assert answer.stdout.rstrip().splitlines()[-1] == "0 of 1 parity cases passed: none"


def test_a_salt_is_another_draw():
    case = cases.ParityCase("pulid", cases.DATA / "pulid")
    other = case.with_salt("other")
    assert torch.equal(case.tensor("a.weight", (3, 4)), weights.tensor("a.weight", (3, 4)))
    assert not torch.equal(case.tensor("a.weight", (3, 4)), other.tensor("a.weight", (3, 4)))
    assert not torch.equal(case.inputs("a", (3, 4)), other.inputs("a", (3, 4)))
    module = other.fill_(torch.nn.Linear(4, 3), prefix="id.")
    assert torch.equal(module.weight, weights.tensor("id.weight", (3, 4), "other"))
