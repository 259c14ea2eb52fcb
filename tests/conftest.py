"""Fixtures for all tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout these tests belong to."""
    return Path(__file__).resolve().parents[1]
