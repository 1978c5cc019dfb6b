from __future__ import annotations

import numpy as np
import pytest
import torch

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.multiview import heads
from kitlib.models.multiview.heads import Classes, HeadOutputs, Heads
from kitlib.training import sphere
from kitlib.vision import fusion as vision_fusion
from kitlib.vision.fusion import Fusion

V, D = 4, 12

CLASSES = Classes(
    state_idx=np.array([3, 7, 40]),
    state_count=np.array([10, 30, 20]),
    state_points=np.array([[61.0, -150.0], [34.0, -118.0], [41.0, -74.0]]),
    cell_points=np.array([[61.0, -150.0], [34.0, -118.0], [38.0, -122.0], [41.0, -74.0]]),
    cell_state=np.array([0, 1, 1, 2]),
    cell_radius_km=np.array([100.0, 50.0, 0.0, 20.0]),
)


def make(**settings) -> Heads:
    torch.manual_seed(0)
    return Heads(CLASSES, V, D, **settings).eval()


def features(n: int = 5) -> torch.Tensor:
    return torch.randn(n, V, D, generator=torch.Generator().manual_seed(1))


def certain(state: int, cell: int, point: tuple[float, float]) -> HeadOutputs:
    """Outputs that are certain of a state, a cell, and a point of the GPS head."""
    one_hot = [torch.full((1, n), -50.0).index_fill_(1, torch.tensor([i]), 50.0) for i, n in ((state, 3), (cell, 4))]
    return HeadOutputs(one_hot[0], one_hot[1], torch.zeros(1, 4, 2), sphere.unit_vectors(np.array([point])))


@pytest.mark.parametrize("kind", vision_fusion.FUSIONS)
def test_fusion_sees_every_kept_view_and_no_other(kind):
    torch.manual_seed(0)
    fusion = Fusion(kind, V, D)
    views, keep = features(2), torch.tensor([[True, True, False, True], [True] * 4])
    fused = fusion(views, keep)
    assert fused.shape == (2, fusion.dim)
    for v in range(V):
        changed = views.clone()
        changed[0, v] += 1.0
        assert torch.equal(fusion(changed, keep)[0], fused[0]) == (v == 2)


def test_average_is_the_mean_and_where_attention_and_learned_weights_begin():
    views, keep = features(), torch.ones(5, V, dtype=torch.bool)
    for kind in ("average", "attention", "learned"):
        assert torch.allclose(Fusion(kind, V, D)(views, keep), views.mean(1), atol=1e-6)


def test_fusion_refuses_an_unknown_kind():
    with pytest.raises(KitError, match="fusion: expected one of average, concat"):
        Fusion("sum", V, D)


@pytest.mark.parametrize("tie", heads.TIES)
def test_shapes_types_and_unit_vectors_of_the_outputs(tie):
    outputs = make(tie=tie)(features())
    assert [tuple(part.shape) for part in outputs] == [(5, 3), (5, 4), (5, 4, 2), (5, 3)]
    assert all(part.dtype == torch.float32 for part in outputs)
    assert torch.allclose(outputs.gps.norm(dim=1), torch.ones(5))


def test_one_view_works():
    assert Heads(CLASSES, 1, D)(features()[:, :1]).states.shape == (5, 3)


def test_coordinates_stay_float32_under_bfloat16_autocast():
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        fused = model(features())
    assert fused.gps.dtype == fused.offsets.dtype == torch.float32
    with torch.no_grad():  # a head whose answer is known: everything zero but the pull towards one state
        for layer in (model.states, model.gps, model.offsets):
            layer.weight.zero_()
            layer.bias.zero_()
        model.states.bias[1] = 60.0
        with torch.autocast("cpu", torch.bfloat16):
            point = geo.from_unit_vectors(model(features()).gps.numpy())
    assert geo.distance_km(point, CLASSES.state_points[1]).max() < 0.01


def test_offsets_are_cell_radii_to_the_east_and_north():
    model = make()
    with torch.no_grad():
        model.offsets.weight.zero_()
        model.offsets.bias.view(4, 2)[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    moved = model.moved(model(features(1)).offsets, torch.arange(4)[None])[0].detach()
    assert torch.allclose(moved.norm(dim=1), torch.ones(4))
    moved = geo.from_unit_vectors(moved.numpy())
    km = geo.distance_km(moved, CLASSES.cell_points)
    assert km == pytest.approx([100.0, 50.0, 0.0, 0.0], abs=0.05)
    assert moved[0, 1] > CLASSES.cell_points[0, 1] and moved[1, 0] > CLASSES.cell_points[1, 0]


def test_scale_standardises_the_training_features_and_survives_a_constant_one():
    model, x = make(), features(50) * 7 + 3
    x[..., 0] = 5.0
    model.fit_scale(x)
    scaled = (x - model.mean) * model.scale
    assert torch.allclose(scaled.flatten(0, 1).mean(0), torch.zeros(D), atol=1e-4)
    assert scaled[..., 1:].flatten(0, 1).std(0) == pytest.approx(np.ones(D - 1), abs=0.01)
    assert scaled.isfinite().all()


def test_certain_outputs_become_a_certain_guess():
    guess = make().guess(np.array([9]), [certain(1, 2, (38.0, -122.0))], n_points=3, gps_share=0.25)
    assert guess.top_states(1)[0, 0] == 7
    assert guess.state_probs[0, 1] == pytest.approx(1.0)
    assert guess.points.shape == (1, 4, 2)
    assert guess.weights[0, :2] == pytest.approx([0.25, 0.75])
    assert geo.distance_km(guess.point()[0], [38.0, -122.0]) < 1.0


def test_states_average_both_heads_and_cells_follow_their_state():
    guess = make().guess(np.array([9]), [certain(0, 1, (0.0, 0.0))], n_points=4, gps_share=0.0)
    assert guess.state_probs[0] == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)


def test_mirrored_outputs_are_averaged():
    both = [certain(0, 0, (60.0, -150.0)), certain(2, 3, (60.0, -150.0))]
    guess = make().guess(np.array([9]), both, n_points=4, gps_share=0.0)
    assert guess.state_probs[0] == pytest.approx([0.5, 0.0, 0.5], abs=1e-6)
    assert sorted(guess.weights[0].round(3).tolist(), reverse=True)[:2] == pytest.approx([0.5, 0.5])


def test_the_fallback_is_the_commonest_states_and_not_answered():
    guess = CLASSES.fallback(np.array([4, 8]))
    assert not guess.answered.any()
    assert guess.top_states(3)[0].tolist() == [7, 40, 3]
    assert guess.state_probs[1] == pytest.approx([1 / 6, 1 / 2, 1 / 3])
    assert len(CLASSES.fallback(np.array([], int))) == 0


def test_labels_name_state_and_nearest_cell_of_it():
    points = np.array([[37.0, -121.0], [34.0, -117.0], [41.0, -74.0], [10.0, 10.0]])
    state, cell = CLASSES.labels(points, np.array([7, 7, 40, 8]))
    assert state.tolist() == [1, 1, 2, -1]
    assert cell.tolist() == [2, 1, 3, -1]


def test_saved_heads_come_back_with_settings_classes_and_weights(tmp_path):
    model = make(fusion="concat", hidden=32, tie="cell")
    model.fit_scale(features())
    model.save(tmp_path / "heads.safetensors")
    again = Heads.load(tmp_path / "heads.safetensors")
    assert again.settings == model.settings and not again.training
    assert np.array_equal(again.classes.state_points, CLASSES.state_points)
    for ours, theirs in zip(model(features()), again(features()), strict=True):
        assert torch.equal(ours, theirs)


def test_unit_vectors_are_float32():
    assert sphere.unit_vectors(np.array([[0.0, 90.0]])) == pytest.approx(torch.tensor([[0.0, 1.0, 0.0]]), abs=1e-7)
    assert sphere.unit_vectors(np.array([[0.0, 0.0]])).dtype == torch.float32
