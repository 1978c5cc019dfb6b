"""Published two-head weights as a run: a file of their layout, made of random weights on a tiny CLIP."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.data import pictures
from kitlib.evaluation import runs
from kitlib.models import locate, multiview
from kitlib.models.multiview import published
from kitlib.vision import encoders

pytestmark = pytest.mark.usefixtures("shared_home")

SETTINGS = {"mirror": False, "image_size": 32}


def stack(*widths: int) -> torch.nn.Sequential:
    """Linear, GELU and dropout layers, so that the linear ones are numbered 0, 3, 6."""
    layers = []
    for before, after in pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.GELU(), torch.nn.Dropout(0.1)]
    return torch.nn.Sequential(*layers[:-2])


@pytest.fixture(scope="module")
def model(clip, world) -> dict[str, torch.nn.Module]:
    """The vision tower and the heads of a published model, with random weights."""
    from transformers import CLIPVisionModel

    torch.manual_seed(1)
    tower = CLIPVisionModel(CLIPVisionModel.from_pretrained(clip[3:]).config)
    n = world.rows("train")["state_idx"].nunique()
    return {"tower": tower, "states": stack(16, 12, n), "gps": stack(16, 12, 6, 2)}


def state_of(model: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """The state dict of a published model: CLIP with its texts, the tower twice, two heads, the box of the points."""
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in model["tower"].state_dict().items()}
    state = {f"backbone.clip_model.vision_model.{name}": tensor for name, tensor in tower.items()}
    state |= {f"backbone.vision_model.{name}": tensor for name, tensor in tower.items()}
    state |= {"backbone.clip_model.logit_scale": torch.tensor(1.0)}
    state |= {"backbone.clip_model.text_model.embeddings.token_embedding.weight": torch.zeros(3, 4)}
    state |= {"backbone.clip_model.visual_projection.weight": torch.zeros(3, 16)}
    state |= {f"classification_head.classifier.{name}": t for name, t in model["states"].state_dict().items()}
    state |= {f"gps_head.regressor.{name}": t for name, t in model["gps"].state_dict().items()}
    return state | {
        "gps_head.lat_range": torch.tensor([18.0, 72.0]),
        "gps_head.lon_range": torch.tensor([-180.0, -65.0]),
    }


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "best_finetune.pt"
    checkpoint = {"epoch": 3, "model_state_dict": state_of(model), "best_score": np.float64(0.9)}
    checkpoint |= {"metrics": {"final_score": np.float32(0.9)}, "config": {"model": {"fusion_method": "mean"}}}
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def imported(file, clip, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower") / "tower"
    return multiview.import_weights(file, "published", world, {"encoder": clip, **SETTINGS}, folder), folder


def test_a_published_file_becomes_a_run_that_answers_as_the_model_did(imported, model, clip, world):
    run, _ = imported
    guess = run.guesses("test")
    encoder = encoders.load(clip, 32)
    pack = pictures.pack(world, "test")
    views = torch.from_numpy(np.moveaxis(np.asarray(pack.decode(np.arange(4), encoder.preprocess.resize)), -1, -3))
    with torch.no_grad():
        pixels = encoder.preprocess(views.flatten(0, 1))
        mean = model["tower"](pixel_values=pixels).pooler_output.unflatten(0, views.shape[:2]).mean(1)
        probs = model["states"].eval()(mean).softmax(1).numpy()
        lat, lon = torch.tanh(model["gps"].eval()(mean)).T.numpy()
    own = guess.at(pack.sample_id[:4])
    known = np.isin(own.state_idx, np.unique(world.rows("train")["state_idx"]))
    np.testing.assert_allclose(own.state_probs[:, known], probs, atol=0.02)
    np.testing.assert_allclose(own.point(), np.stack([45 + 27 * lat, -122.5 + 57.5 * lon], 1), atol=1.0)
    assert "no score is out of fold" in run.metrics["imported"]


def test_it_is_asked_about_photographs(imported, small_sample, tmp_path):
    source = small_sample / "kaggle_dataset"
    answer = locate.ask("published", source)
    np.testing.assert_allclose(
        answer.guesses.state_probs, runs.open_run("published").guesses("test").state_probs, atol=0.01
    )
    assert answer.table["state_1"].notna().all()


def test_training_goes_on_from_its_tower(imported, model):
    encoder = encoders.load(f"hf:{imported[1]}")
    ours = {name.removeprefix("tower.vision_model.").removeprefix("tower."): t
            for name, t in encoder.backbone.state_dict().items()}  # fmt: skip
    for name, tensor in model["tower"].state_dict().items():
        torch.testing.assert_close(ours[name.removeprefix("vision_model.")], tensor)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fusion.attention.q": torch.zeros(2, 2, 2)}, "not mapped: fusion.attention.q"),
        ({"gps_head.lat_range": None}, "its box"),
        ({"classification_head.classifier.0.weight": torch.zeros(5, 4)}, "not mapped: classification_head.classifier"),
        ({"state_head.weight": torch.zeros(7, 16), "state_head.bias": torch.zeros(7)}, "not mapped: .*state_head"),
        ({"backbone.clip_model.vision_model.post_layernorm.bias": torch.zeros(3),
          "backbone.vision_model.post_layernorm.bias": torch.zeros(3)}, "does not fit encoder .*of another shape"),
    ],
)  # fmt: skip
def test_a_file_of_another_layout_is_refused_and_leaves_nothing(model, clip, world, tmp_path, change, said):
    state = {name: tensor for name, tensor in (state_of(model) | change).items() if tensor is not None}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(KitError, match=said):
        multiview.import_weights(tmp_path / "other.pt", "other", world, {"encoder": clip, **SETTINGS})
    assert "other" not in runs.list_runs()


def test_a_head_of_other_states_is_refused(model, clip, world, tmp_path):
    n = world.rows("train")["state_idx"].nunique()
    torch.save(state_of(model | {"states": stack(16, 12, n + 1)}), tmp_path / "other.pt")
    with pytest.raises(KitError, match=f"expected a head of the {n} states .* it has {n + 1}"):
        multiview.import_weights(tmp_path / "other.pt", "other", world, {"encoder": clip, **SETTINGS})


class Evil:
    def __reduce__(self):
        return (os.system, (f"touch {os.environ['KITLIB_HOME']}/executed",))


def test_a_file_with_code_is_refused_and_never_executed(shared_home, tmp_path):
    torch.save({"model_state_dict": {}, "config": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(KitError, match="it holds more than tensors and plain values"):
        published.read(tmp_path / "evil.pt")
    assert not (shared_home / "executed").exists()
    shutil.copy(__file__, tmp_path / "text.pt")
    with pytest.raises(KitError, match="expected a checkpoint"):
        published.read(tmp_path / "text.pt")
