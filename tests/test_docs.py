"""The documentation says what the code does: derived pages are current, and links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["capabilities.md", "settings.md", "errors.md", "models.md"])
def test_derived_page_is_current(name):
    assert (ROOT / "docs" / name).read_text() == generator().PAGES[name](), f"docs/{name} lags behind: make docs"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 150}, "integer 1 to 150"),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 2**32}, "integer 0 to 4294967295"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number above 0 to 1"),
        ({"type": "number", "exclusiveMaximum": 1}, "number up to below 1"),
        ({"type": "integer", "exclusiveMinimum": 0}, "integer from 1"),
        ({"anyOf": [{"type": "number", "minimum": 0.5}, {"type": "null"}]}, "number from 0.5; null"),
        ({"type": "string"}, "string"),
    ],
)
def test_a_limit_that_cannot_be_reached_is_not_told_as_if_it_could(schema, words):
    assert generator().limits(schema) == words


def test_links_lead_somewhere():
    seen = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" in target:
                continue
            seen += 1
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    assert seen >= 10


def test_readme_fits_a_screen():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 60
    assert "make run" in "\n".join(lines[:12]) and "make test" in "\n".join(lines[:12])


def test_architecture_names_every_part():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for part in ("job_store", "worker", "multi_gpu", "guarded_http", "storage", "batch_processing"):
        assert part in text
