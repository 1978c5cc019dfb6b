"""Licences of published weights by name."""

from __future__ import annotations

import pytest

from kitlib.vision import licences
from kitlib.vision.licences import licence_of


@pytest.mark.parametrize(
    ("name", "licence", "commercial"),
    [
        ("hf:geolocal/StreetCLIP", "cc-by-nc-4.0", False),
        ("hf:/kaggle/input/streetclip/transformers/default/1", "cc-by-nc-4.0", False),
        ("hf:Qwen/Qwen2.5-VL-3B-Instruct", "qwen-research", False),
        ("hf:Qwen/Qwen2.5-VL-7B-Instruct", "apache-2.0", True),
        ("tinker:Qwen/Qwen3.6-27B", "apache-2.0", True),
        ("hf:facebook/dinov2-large", "apache-2.0", True),
        ("hf:facebook/dinov3-vitl16-pretrain-lvd1689m", "dinov3-license", True),
        ("hf:somebody/dinov2-tuned", "unknown", None),
        ("hf:Qwen/Qwen2.5-VL-72B-Instruct", "unknown", None),
        ("timm:eva02_large_patch14_448.mim_m38m_ft_in22k_in1k", "mit", True),
        ("timm:convnextv2_large.fcmae_ft_in22k_in1k_384?drop_rate=0@w/model.safetensors", "cc-by-nc-4.0", False),
        ("timm:no_such_model.tag", "unknown", None),
        ("tiny:qwen3", "apache-2.0", True),
    ],
)
def test_a_licence_is_found_by_name_or_called_unknown(name: str, licence: str, commercial: bool | None) -> None:
    found = licence_of(name)

    assert (found.name, found.commercial) == (licence, commercial)
    lists = {"apache-2.0": "Apache 2.0", "mit": "MIT"}
    lists |= {"cc-by-nc-4.0": "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)"}
    assert found.kaggle == lists.get(licence, "")
    assert (licences.licence(name) is None) == (licence == "unknown")


def test_unknown_weights_say_where_to_look_without_folders_of_this_machine() -> None:
    assert licence_of("hf:somebody/model").sentence.endswith("look it up at https://huggingface.co/somebody/model")
    assert "/home" not in licence_of("hf:/home/me/model").sentence


def test_weights_in_a_file_are_said_to_be_taken_for_the_published_ones() -> None:
    said = licence_of("timm:resnet18@/home/me/model.safetensors").sentence

    assert said.endswith("if its file holds the published weights")
    assert "/home" not in said


def test_loading_an_encoder_tells_its_licence_once(clip, caplog):
    from kitlib.vision import encoders

    licences._log_once.cache_clear()
    with caplog.at_level("INFO", "kitlib"):
        encoders.load("tiny"), encoders.load(clip), encoders.load(clip)
    assert caplog.messages == [f"the licence of {clip.rpartition('/')[2]} is unknown here: look it up at the place it "
                               "was published at"]  # fmt: skip
