"""What a proof's row says of the tree that it ran on."""

import subprocess
from pathlib import Path

from tests import prove


def test_a_page_that_a_run_writes_does_not_make_its_commit_another_one(tmp_path: Path, monkeypatch) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    (tmp_path / "docs").mkdir()
    for name in ("docs/proofs.md", "docs/performance.md", "code.py"):
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "-q", "-m", "all")
    monkeypatch.setattr(prove, "ROOT", tmp_path)
    here = git("rev-parse", "--short", "HEAD").strip()
    assert prove.commit() == here
    (tmp_path / "docs" / "proofs.md").write_text("figures")
    (tmp_path / "docs" / "performance.md").write_text("figures")
    assert prove.commit() == here, "an interrupted run would begin anew"
    (tmp_path / "code.py").write_text("after")
    assert prove.commit() == here + "+"
