from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.tiny import write_images

# Of torch, about how Lightning calls it.
_OF_LIGHTNING = ("ignore:.*LeafSpec.*:FutureWarning", "ignore:.*isinstance.treespec.*")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for warning in _OF_LIGHTNING:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight images."""
    return write_images(tmp_path_factory.mktemp("data") / "images")
