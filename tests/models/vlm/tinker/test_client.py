"""What the kit asks of Tinker: a key, models, checkpoints, renderers; and that the tests' service is like the real."""

from __future__ import annotations

import inspect
import sys
import tomllib
from types import SimpleNamespace

import pytest
import tinker_helper as helper
from tinker_helper import MODEL, SECRET, TASK, Away, Plain, cases

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.models.vlm.tinker import client
from kitlib.models.vlm.tinker.batches import CaseBatches
from kitlib.models.vlm.tinker.environments import GroupDataset


@pytest.fixture
def tinker(monkeypatch):
    return Away().install(monkeypatch)


def test_a_model_is_one_that_the_service_trains_and_that_sees(tinker):
    client.check_model(MODEL)
    for wrong in ("Lab/Blind", "Lab/Sees-3", "Lab/Sees-9", "Unknown/Model"):
        with pytest.raises(KitError, match=rf"^model: .* trains, {MODEL}, Lab/Sees-2:peft:262144; got '{wrong}'"):
            client.check_model(wrong)


def test_a_checkpoint_is_of_the_same_model_and_rank(tinker):
    tinker.saved["tinker://run/weights/final"] = 7
    client.check_checkpoint("tinker://run/weights/final", MODEL, 16)
    with pytest.raises(KitError, match=r"^model: expected 'Lab/Sees-1' as in tinker://run/weights/final; got 'other'"):
        client.check_checkpoint("tinker://run/weights/final", "other", 16)
    with pytest.raises(KitError, match=r"^lora_rank: expected 16 as in"):
        client.check_checkpoint("tinker://run/weights/final", MODEL, 8)
    with pytest.raises(KitError, match=r"^Tinker: no checkpoint tinker://gone/weights/1"):
        client.check_checkpoint("tinker://gone/weights/1", MODEL, 16)


@pytest.mark.parametrize(("model", "thinking", "expected"), [
    (MODEL, False, "sees_disable_thinking"), (MODEL, True, "sees"), ("Lab/Sees-2", False, "two")])  # fmt: skip
def test_a_renderer_thinks_only_when_asked(tinker, monkeypatch, model, thinking, expected):
    loader = SimpleNamespace(get_tokenizer=lambda name: f"{name}'s", get_image_processor=lambda name: f"{name}'s")
    monkeypatch.setitem(sys.modules, "tinker_cookbook.renderers", SimpleNamespace(get_renderer=lambda *given: given))
    for name in ("tokenizer_utils", "image_processing_utils"):
        monkeypatch.setitem(sys.modules, f"tinker_cookbook.{name}", loader)
    assert client.renderer(model, thinking) == (expected, f"{model}'s", f"{model}'s", model)
    with pytest.raises(KitError, match="expected a vision-language model that tinker-cookbook knows; got 'Lab/Blind'"):
        client.renderer("Lab/Blind")


CALLS = [client.connect, lambda: client.check_model(MODEL), lambda: client.check_checkpoint("tinker://", MODEL, 16)]


@pytest.mark.parametrize("call", [*CALLS, lambda: client.renderer(MODEL)])
def test_without_the_library_one_sentence_says_how_to_get_it(call, monkeypatch):
    monkeypatch.setenv(client.KEY, SECRET)
    for name in ("tinker", "tinker_cookbook", "tinker_cookbook.model_info"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KitError, match=r"^tinker(_cookbook)? is not installed: .* pip install -e '.\[tinker\]'"):
        call()


@pytest.mark.parametrize("key", [None, ""])
@pytest.mark.parametrize("call", CALLS)
def test_without_a_key_one_sentence_says_what_is_missing(call, key, monkeypatch, tinker):
    monkeypatch.delenv(client.KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(client.KEY, key)
    with pytest.raises(KitError, match=r"^TINKER_API_KEY is not set: make a key in Tinker's console"):
        call()


def test_the_key_is_not_handed_around(tinker):
    client.connect()
    assert tinker.given == [{}]  # the library reads the key itself
    made = GroupDataset(CaseBatches(cases(), 1, 0), TASK, Plain(), steps=1, group=2)
    [group] = made.get_batch(0)
    assert SECRET not in repr(vars(made)) + repr(group)


def test_the_extra_is_optional():
    extras = tomllib.loads((paths.checkout() / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [line.split(">")[0] for line in extras["tinker"]] == ["tinker", "tinker-cookbook"]
    assert not [line for line in extras["dev"] if "tinker" in line]
    assert "tinker" not in (paths.checkout() / "requirements.lock").read_text()


def test_the_services_of_the_tests_take_what_the_real_ones_take():
    real = pytest.importorskip("tinker", reason="of the extra tinker")
    from tinker.types import SampledSequence, SupportedModel, WeightsInfoResponse

    pairs = {helper.Service: real.ServiceClient, helper.Training: real.TrainingClient}
    pairs |= {helper.Rest: real.RestClient, helper.Canned: real.SamplingClient}
    for fake, theirs in pairs.items():
        for name, method in inspect.getmembers(fake, inspect.isfunction):
            if name != "__init__":
                taken = inspect.signature(getattr(theirs, name)).parameters
                assert name.startswith("__") or set(inspect.signature(method).parameters) <= set(taken), name
    assert {"model_name", "trainable"} <= set(SupportedModel.model_fields)
    assert {"base_model", "lora_rank"} <= set(WeightsInfoResponse.model_fields)
    assert {"tokens", "logprobs", "stop_reason", "sequence_id"} <= set(dir(SampledSequence)) | set(
        SampledSequence.__dataclass_fields__
    )
