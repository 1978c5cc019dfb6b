"""Fixtures that several test files share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from data_helper import SHARED

if TYPE_CHECKING:
    from kitlib.data.places import Places


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then the slow ones that may take longest, so that no process is left with one at the end."""

    def order(item: pytest.Item) -> tuple[bool, float]:
        limit = item.get_closest_marker("timeout")
        return item.get_closest_marker("slow") is not None, -(limit.args[0] if limit else 0)

    items.sort(key=order)


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
    monkeypatch.setenv("KITLIB_GIVEN", "{}")
    return tmp_path


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory) -> Path:
    """A small drawn competition: 60 training and 20 test places, 96 px pictures."""
    from kitlib.data.sample import competition as sample

    return sample.draw(tmp_path_factory.mktemp("sample"), n_train=60, n_test=20, size=96, seed=0)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory) -> Iterator[Path]:
    """A home for a whole test file, so that pictures are packed and embedded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KITLIB_HOME", str(folder := tmp_path_factory.mktemp("home")))
        patch.setenv("KITLIB_GIVEN", "{}")
        yield folder


@pytest.fixture(scope="module")
def world(shared_home, small_sample) -> Places:
    """The small drawn competition, in a home for the whole test file."""
    from kitlib.data import readers

    return readers.read(small_sample)


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    """The name of a tiny CLIP vision model of three blocks with random weights, in the layout of StreetCLIP."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**size, image_size=32, patch_size=8)
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**crop).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C: a shell lets what it starts in the background ignore it, and its children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
