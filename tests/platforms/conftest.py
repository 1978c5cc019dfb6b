"""The stand-in for the Hugging Face hub as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hub_helper import Hub

PATH = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def server(home, monkeypatch) -> Iterator[Hub]:
    """The stand-in, to which the client talks, with a token."""
    from huggingface_hub import constants

    stand_in = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    yield stand_in
    stand_in.free.set()
    stand_in.shutdown()
    stand_in.server_close()
