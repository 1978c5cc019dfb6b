"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def real_us() -> Path:
    """The real photographs of 31 states, where they are at hand."""
    folder = SHARED / "real/us/kaggle_dataset"
    if not folder.is_dir():
        pytest.skip("the real photographs (shared/real/us) are not at hand")
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home for data and submissions."""
    monkeypatch.setenv("KITLIB_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory) -> Path:
    """A small drawn competition: 60 training and 20 test places, 96 px pictures."""
    from kitlib import sample

    return sample.draw(tmp_path_factory.mktemp("sample"), n_train=60, n_test=20, size=96, seed=0)
