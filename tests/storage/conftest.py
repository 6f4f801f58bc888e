"""What the tests of files share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One folder for all examples of a property, which a `tmp_path` can't be."""
    return tmp_path_factory.mktemp("files")
