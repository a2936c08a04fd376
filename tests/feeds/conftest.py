from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # helpers.py


@pytest.fixture
def shared_data() -> Path:
    """Real product data, which may not be part of the project."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real product data beside the repository is absent")
    return folder


@pytest.fixture
def shared_cases() -> Path:
    """Small exports that once were misread."""
    places = (parent / "shared" / "cases" / "feeds" for parent in Path(__file__).parents[3:])
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        pytest.skip("the cases beside the repository are absent")
    return folder
