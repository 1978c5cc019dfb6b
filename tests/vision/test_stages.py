"""Features of all stages: their widths and values, token grids, names with files, several encoders side by side."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.vision import encoders
from kitlib.vision.inputs import Inputs
from kitlib.vision.stages import as_maps

PICTURES = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_pooled_output_comes_first_and_each_stage_follows_in_bands():
    plain, staged = encoders.load("tiny"), encoders.load("tiny#stages")
    with torch.inference_mode():
        features = staged(PICTURES)
        np.testing.assert_allclose(features[:, : plain.dim], plain(PICTURES), rtol=1e-5)
        first = plain.backbone.blocks[0](plain.preprocess(PICTURES))
    assert staged.dim == features.shape[1] == sum(staged.parts)
    whole = features[:, plain.dim : plain.dim + 2 * first.shape[1]]
    np.testing.assert_allclose(whole[:, : first.shape[1]], first.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_second_batch_has_only_its_own_features():
    encoder = encoders.load("tiny#stages")
    with torch.inference_mode():
        twice = [encoder(PICTURES) for _ in range(2)]
    np.testing.assert_array_equal(*twice)


def test_patch_tokens_are_laid_out_in_their_square_without_the_class_token():
    tokens = torch.arange(1 * 10 * 2).reshape(1, 10, 2).float()
    maps = as_maps(tokens)
    assert maps.shape == (1, 2, 3, 3)
    assert maps[0, 0, 0].tolist() == [2, 4, 6]


def test_a_transformer_has_the_stages_of_chosen_layers(clip):
    encoder = encoders.load(f"{clip}#stages")
    assert encoder.parts == [16, *[32, 96] * 3]
    assert encoder.name.endswith("#stages")


def test_fine_tuning_takes_a_single_encoder(world):
    for name in ("tiny#stages", "tiny+tiny#stages"):
        with pytest.raises(KitError, match="to be fine-tuned"):
            Inputs(world, name).encoder()


def test_names_with_files_travel_without_folders(home, tmp_path):
    outside = tmp_path / "elsewhere"
    for name in ("a", "b"):
        (outside / name).mkdir(parents=True)
    spec = f"timm:x@{outside}/a#stages+hf:{outside}/b+tiny"
    short = paths.portable("encoder", spec)
    assert short == "timm:x@elsewhere/a#stages+hf:elsewhere/b+tiny"
    assert paths.located("encoder", short) == spec
