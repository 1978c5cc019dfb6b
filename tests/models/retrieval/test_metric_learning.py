"""metric: the projection's start, batches of neighbours, learning on a toy, exact resume."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.models.retrieval import metric_learning
from kitlib.models.retrieval.metric_learning import (
    MetricOptions,
    MetricTraining,
    Projection,
    near_batches,
    pair_mask,
    pool,
)
from kitlib.training import fit
from kitlib.training.sphere import haversine_km, unit_vectors

N, V, D = 360, 2, 40
HELD_OUT = np.arange(N) % 4 == 0
OPTIONS = MetricOptions(near_km=300.0, view_dropout=0.1)


@cache
def toy() -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Places whose features tell where they are in six smooth waves, among louder distractors."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(30, 48, N), rng.uniform(-120, -75, N)], axis=1)
    waves = np.concatenate([np.sin(points / 5), np.cos(points / 5), (points - points.mean(0)) / points.std(0)], axis=1)
    signal = waves[:, None, None] + 0.3 * rng.normal(size=(N, 2, V, 6))
    distractors = 1.5 * rng.normal(size=(N, 1, 1, D - 6)) + 0.5 * rng.normal(size=(N, 2, V, D - 6))
    features = torch.from_numpy(np.concatenate([signal, distractors], axis=-1)).half()
    return points, {"features": features, "place": unit_vectors(points), "group": torch.arange(N)}


def load(rows):
    return {name: tensor[torch.from_numpy(rows)] for name, tensor in toy()[1].items()}


def projection_of(dim=16, **options) -> Projection:
    torch.manual_seed(0)
    projection = Projection(D, dim, **options)
    projection.fit_scale(pool(toy()[1]["features"][~HELD_OUT, 0]))
    return projection


def training(folder, epochs=4, rate=2e-2, chosen=OPTIONS, before_step=None, **options):
    """A projection that has learned from the toy, and what `fit` gives."""
    points, _ = toy()
    rows = np.flatnonzero(~HELD_OUT)
    batches = near_batches(points, 48, 3, load, rows=rows)
    steps = fit.total_steps(len(rows), 48, 1, epochs)
    module = MetricTraining(projection_of(hidden=8), None, chosen, steps, rate=rate)
    if before_step:
        step = module.training_step

        def watched(batch, batch_idx):
            before_step(module.current_epoch, batch_idx)
            return step(batch, batch_idx)

        module.training_step = watched
    held_out = Batches(np.flatnonzero(HELD_OUT), 45, 0, load, shuffle=False)
    options = {"epochs": epochs, "config": dataclasses.asdict(chosen), "val_batches": held_out} | options
    return module, fit.fit(module, batches, folder, **options)


@torch.no_grad()
def measured(projection) -> tuple[float, float]:
    """Of held-out places: how well similarity ranks nearness (Spearman), and the share of violations."""
    points, data = toy()
    embedding = projection.eval()(pool(data["features"][HELD_OUT, 0]))
    similarity, km = embedding @ embedding.T, torch.from_numpy(geo.distance_matrix_km(points[HELD_OUT]))
    mask = pair_mask(km)
    wrong, compared = metric_learning.violations(similarity, km, mask)
    return spearmanr(similarity[mask], -km[mask]).statistic, float(wrong / compared)


# Projection


def test_the_start_has_the_similarities_of_standardised_features():
    pooled = pool(toy()[1]["features"][:, 0])
    projection = projection_of(dim=D).eval()
    train = pooled[~HELD_OUT]
    standard = (pooled - train.mean(0)) / (train.std(0) + 1e-3 * train.std())
    wanted = torch.nn.functional.normalize(standard, dim=1)
    embedding = projection(pooled)
    assert torch.allclose(embedding @ embedding.T, wanted @ wanted.T, atol=1e-4)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(N), atol=1e-5)


def test_a_smaller_start_keeps_what_varies_most():
    torch.manual_seed(0)
    two = torch.randn(300, 2) @ torch.randn(2, D)  # two directions are all there is
    projection = Projection(D, 2)
    projection.fit_scale(two)
    whole = Projection(D, D)
    whole.fit_scale(two)
    small, large = projection.eval()(two), whole.eval()(two)
    assert small.shape == (300, 2)
    assert torch.allclose(small @ small.T, large @ large.T, atol=1e-3)


def test_fewer_places_than_features_have_the_directions_of_the_large_decomposition():
    torch.manual_seed(0)
    features = torch.randn(12, D) * torch.linspace(1, 3, D)
    centred = features - features.mean(0)
    found = metric_learning.principal_directions(centred, D)
    wanted = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors.flip(1).T
    for dim in (1, 4, 11):  # 11 is the rank: the rest are arbitrary
        assert torch.allclose(torch.linalg.svdvals(found[:dim] @ wanted[:dim].T), torch.ones(dim).double(), atol=1e-5)
    assert torch.allclose(found @ found.T, torch.eye(D).double(), atol=1e-6)


def test_of_many_places_with_many_features_some_give_the_directions(monkeypatch):
    torch.manual_seed(0)
    two = torch.randn(3000, 2) @ torch.randn(2, D)
    monkeypatch.setattr(metric_learning, "MOST_ROWS", D - 10)
    projection = Projection(D, 2)
    projection.fit_scale(two)
    standard = projection.standardise(two)
    assert torch.allclose(standard @ projection.start.T @ projection.start, standard, atol=1e-3)


def test_constant_features_and_half_precision_stay_finite():
    features = torch.randn(20, D).half()
    features[:, 3] = 7
    projection = Projection(D, 8)
    projection.fit_scale(features)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = projection.eval()(features)
    assert embedding.dtype == torch.float32 and embedding.isfinite().all()


@pytest.mark.parametrize("bad", [{"dim": 0}, {"dim": D + 1}, {"hidden": -1}, {"dropout": 1.0}])
def test_projection_refuses(bad):
    with pytest.raises(KitError, match=rf"expected dim 1\.\.{D}"):
        Projection(**{"n_features": D, "dim": 4} | bad)


@pytest.mark.parametrize("features", [torch.zeros(5, D - 1), torch.zeros(1, D), torch.full((5, D), torch.nan)])
def test_fit_scale_refuses(features):
    with pytest.raises(KitError, match=f"expected at least 2 rows of {D} finite"):
        Projection(D, 4).fit_scale(features)


def test_pool_is_the_mean_of_the_kept_views():
    features = torch.tensor([[[1.0], [3.0], [8.0]]])
    assert pool(features).item() == 4
    assert pool(features, torch.tensor([[True, True, False]])).item() == 2


def test_options_refuse_another_loss():
    with pytest.raises(KitError, match="loss: expected one of cosent, infonce, both"):
        MetricOptions(loss="triplet")
    with pytest.raises(KitError, match="temperature: expected more than 0; got 0"):
        MetricOptions(temperature=0.0)


# losses


def places(n: int, seed: int = 0, spread: float = 0.2):
    """Similarity, km and mask of n random places; nothing in the similarities knows the distances."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.tensor([0.6, 0.0, 0.8])
    place = torch.nn.functional.normalize(middle + spread * torch.randn(n, 3, generator=generator), dim=1)
    embedding = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1)
    km = haversine_km(place[:, None], place)
    return embedding @ embedding.T, km, pair_mask(km)


def test_pair_mask_leaves_out_itself_its_group_and_what_is_too_close():
    km = torch.tensor([[0.0, 1.0, 50.0], [1.0, 0.0, 50.0], [50.0, 50.0, 0.0]])
    assert pair_mask(km).tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert pair_mask(km, min_km=2.0).tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    assert pair_mask(km, torch.tensor([4, 5, 4])).tolist() == [
        [False, True, False],
        [True, False, True],
        [False, True, False],
    ]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 10**6), digits=st.integers(0, 3))
def test_violations_count_what_loops_count(n, seed, digits):
    similarity, km, mask = places(n, seed)
    similarity = similarity.mul(10**digits).round()  # ties, which are no violations
    bucket = np.digitize(km.numpy(), metric_learning.KM_EDGES)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    ordered = [(a, b) for a in pairs for b in pairs if bucket[b] - bucket[a] >= 2]
    wrong = sum(bool(similarity[a] < similarity[b]) for a, b in ordered)
    assert [int(x) for x in metric_learning.violations(similarity, km, mask)] == [wrong, len(ordered)]


def test_violations_of_a_perfect_and_of_a_reversed_similarity():
    _, km, mask = places(30)
    wrong, compared = metric_learning.violations(-km, km, mask)
    assert wrong == 0 < compared
    assert metric_learning.violations(km, km, mask)[0] == compared


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_cosent_is_that_of_loops_over_pairs_of_pairs(scale):
    similarity, km, mask = places(12)
    bucket = np.digitize(km.numpy(), metric_learning.KM_EDGES)
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    buckets = sorted({bucket[pair] for pair in pairs})

    def mean(sign, number):
        return np.mean([np.exp(sign * scale * similarity[pair].item()) for pair in pairs if bucket[pair] == number])

    terms = [mean(-1, near) * mean(1, far) for near in buckets for far in buckets if far - near >= 2]
    assert metric_learning.cosent(similarity, km, mask, scale).item() == pytest.approx(math.log1p(sum(terms)), rel=1e-5)


def test_cosent_draws_the_near_pair_together_and_pushes_the_far_ones_apart():
    km = torch.tensor([[0.0, 5.0, 900.0], [5.0, 0.0, 900.0], [900.0, 900.0, 0.0]])
    similarity = torch.zeros(3, 3, requires_grad=True)
    metric_learning.cosent(similarity, km, pair_mask(km), 5.0).backward()
    assert similarity.grad[0, 1] < 0 < similarity.grad[0, 2] == similarity.grad[1, 2]
    alone = metric_learning.cosent(similarity, km, pair_mask(km) & (km < 10), 5.0)
    assert alone.item() == 0 and alone.requires_grad


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), half=st.booleans())
def test_losses_have_finite_gradients(seed, half):
    similarity, km, mask = places(8, seed)
    mask[0] = mask[:, 0] = False
    leaf = similarity.to(torch.bfloat16 if half else torch.float32).requires_grad_()
    loss = metric_learning.cosent(leaf, km, mask, 20.0) + metric_learning.info_nce(leaf, km, mask, near_km=500.0)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and leaf.grad.isfinite().all()
    assert (leaf.grad[0] == 0).all()


def test_info_nce_by_hand():
    km = torch.tensor([[0.0, 100.0, 200.0], [100.0, 0.0, 250.0], [200.0, 250.0, 0.0]])
    similarity = torch.tensor([[9.0, 0.1, 0.3], [0.1, 9.0, 0.2], [0.3, 0.2, 9.0]])
    rows = []
    for (km_a, s_a), (km_b, s_b) in [((100, 0.1), (200, 0.3)), ((100, 0.1), (250, 0.2)), ((200, 0.3), (250, 0.2))]:
        target = np.exp([-km_a / 100, -km_b / 100])
        share = np.exp([s_a / 0.5, s_b / 0.5])
        rows.append(-(target / target.sum() * np.log(share / share.sum())).sum())
    loss = metric_learning.info_nce(similarity, km, pair_mask(km), temperature=0.5, near_km=100.0)
    assert loss.item() == pytest.approx(np.mean(rows), rel=1e-5)


def test_info_nce_skips_rows_without_a_near_place():
    km = torch.tensor([[0.0, 10.0, 900.0], [10.0, 0.0, 900.0], [900.0, 900.0, 0.0]])
    similarity = torch.tensor([[1.0, 0.4, 0.1], [0.4, 1.0, 0.2], [0.1, 0.2, 1.0]], requires_grad=True)
    mask = pair_mask(km)
    assert metric_learning.has_near(km, mask, 10.0).tolist() == [True, True, False]
    loss = metric_learning.info_nce(similarity, km, mask, temperature=1.0, near_km=10.0)
    loss.backward()
    expected = [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(-0.2))]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert (similarity.grad[2] == 0).all() and (similarity.grad[0] != 0).any()
    alone = metric_learning.info_nce(similarity, km, mask, near_km=1.0)
    assert alone.item() == 0 and alone.requires_grad


# near_batches


def test_near_batches_hand_out_each_row_once_in_an_order_by_seed_and_epoch():
    rows = np.flatnonzero(~HELD_OUT)

    def epochs(seed, n=2, **options):
        batches = near_batches(toy()[0], 48, seed, lambda rows: {"row": rows}, rows=rows, **options)
        return [[batch["row"].tolist() for batch in batches] for _ in range(n)]

    first, second = epochs(1)
    assert sorted(chain(*first)) == sorted(chain(*second)) == rows.tolist()
    assert [len(batch) for batch in first] == [48] * 5 + [30]
    assert first != second and epochs(1) == [first, second] != epochs(2) and epochs(1, prefetch=True) == [first, second]

    cut = near_batches(toy()[0], 48, 1, lambda rows: {"row": rows}, rows=rows)
    cut.load_state_dict({"epoch": 1, "batch": 2})
    assert [batch["row"].tolist() for batch in cut] == second[2:]


def test_near_batches_have_many_more_near_pairs_than_random_ones():
    points = toy()[0]

    def near_share(batches):
        kms = [geo.distance_matrix_km(points[batch["row"]]) for batch in batches]
        return np.mean([(km + np.eye(len(km)) * 1e9).min(axis=1).mean() for km in kms])

    def row(rows):
        return {"row": rows}

    random_km = near_share(Batches(N, 24, 0, row))
    four, eight = (near_share(near_batches(points, 24, 0, row, together=together)) for together in (4, 8))
    assert eight < four < 0.7 * random_km


# MetricTraining


@pytest.mark.parametrize("loss", ["cosent", "infonce", "both"])
def test_training_orders_held_out_places_better(tmp_path, loss):
    rank, wrong = measured(projection_of())
    module, fitted = training(tmp_path, epochs=8, chosen=dataclasses.replace(OPTIONS, loss=loss))
    rank_after, wrong_after = measured(module.projection)
    assert rank_after > rank + 0.2 and wrong_after < 0.7 * wrong
    parts = {"cosent", "infonce"} if loss == "both" else {loss}
    assert parts | {"violations", "without_near", "val_violations", "val_nearest_km"} <= set(fitted.history.columns)
    assert not {"cosent", "infonce"} - parts & set(fitted.history.columns)
    ends = fitted.history.iloc[[0, -1]]
    for falls in ("violations", "val_violations", "val_nearest_km"):
        assert ends[falls].iloc[1] < ends[falls].iloc[0]


@pytest.mark.parametrize("crash", [(1, 3), (2, 0)])
def test_a_fit_that_was_cut_short_ends_with_the_same_weights(tmp_path, crash):
    def explode(epoch, batch):
        if (epoch, batch) == crash:
            raise MemoryError("boom")

    whole, fitted = training(tmp_path / "whole", epochs=3)
    with pytest.raises(MemoryError, match="boom"):
        training(tmp_path / "cut", epochs=3, checkpoint_steps=2, before_step=explode)
    again, resumed = training(tmp_path / "cut", epochs=3, checkpoint_steps=2)
    assert resumed.finished and resumed.steps == fitted.steps
    weights = whole.state_dict()
    assert {"projection.start", "projection.mean"} < set(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    assert resumed.history["val_violations"].iloc[-1] == fitted.history["val_violations"].iloc[-1]


def test_validation_counts_each_pair_and_place_alike():
    module = MetricTraining(projection_of().eval(), None, OPTIONS, 1, rate=1e-3)
    logged = {}
    module.log = lambda name, value, batch_size, **_: logged.update({name: (float(value), batch_size)})
    rows = np.arange(20)
    module.validation_step(load(rows), 0)
    embedding = module.projection(pool(toy()[1]["features"][rows, 0]))
    km = geo.distance_matrix_km(toy()[0][rows])
    nearest = (embedding @ embedding.T).fill_diagonal_(-2).argmax(1).numpy()
    assert logged["val_nearest_km"] == (pytest.approx(km[rows, nearest].mean(), rel=1e-4), 20)
    share, compared = logged["val_violations"]
    assert 0 < share < 1 and compared > 1000
    module.validation_step(load(rows[:1]), 1)
    assert logged == {"val_nearest_km": (0.0, 0), "val_violations": (0.0, 0)}


def test_places_of_a_group_are_no_pair():
    module = MetricTraining(projection_of(), None, OPTIONS, 1, rate=1e-3)
    logged = {}
    module.log_dict = logged.update
    batch = load(np.arange(10)) | {"group": torch.zeros(10, dtype=torch.long)}
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.item() == 0 and logged["without_near"] == 1
    assert all((p.grad is None) or (p.grad == 0).all() for p in module.parameters())
