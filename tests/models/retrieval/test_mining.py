"""mining: masks, the mean curve, which pairs are chosen (against loops over pairs), losses against numbers by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.models.retrieval import mining
from kitlib.models.retrieval.mining import MeanCurve, pair_mask
from kitlib.training.sphere import haversine_km

EDGES = (100.0, 200.0, 400.0, 800.0)


def places(n: int, seed: int = 0, spread: float = 0.2):
    """Similarity, km and mask of n random places; nothing in the similarities knows the distances."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.tensor([0.6, 0.0, 0.8])
    place = torch.nn.functional.normalize(middle + spread * torch.randn(n, 3, generator=generator), dim=1)
    embedding = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1)
    km = haversine_km(place[:, None], place)
    return embedding @ embedding.T, km, pair_mask(km)


def curve_of(similarity, km, mask, edges=EDGES) -> MeanCurve:
    curve = MeanCurve(edges)
    curve.update(similarity, km, mask)
    return curve


def looped(similarity, km, mask, curve, gap=2):
    """Cells below and above the curve with a partner, each {(bucket, level): {pairs}}, one pair after the other."""
    n, edges = len(km), curve.edges.numpy()
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if mask[i, j]]
    bucket_of = {pair: int(sum(km[pair] >= edge for edge in edges)) for pair in pairs}
    sums = Counter()
    for pair, bucket in bucket_of.items():
        sums[bucket] += similarity[pair].item()
    mean = {bucket: sums[bucket] / count for bucket, count in Counter(bucket_of.values()).items()}
    near, far = {}, {}
    for pair, bucket in bucket_of.items():
        s = similarity[pair].item()
        cell = bucket, sum(s >= np.float32(edge) for edge in mining.SIMILARITY_EDGES)
        if s != pytest.approx(mean[bucket], abs=1e-6):
            (near if s < mean[bucket] else far).setdefault(cell, set()).add(pair)
    highest, lowest = max((b for b, _ in far), default=-9), min((b for b, _ in near), default=99)
    near = {cell: pairs for cell, pairs in near.items() if cell[0] + gap <= highest}
    return near, {cell: pairs for cell, pairs in far.items() if cell[0] - gap >= lowest}


def pairs_of(rows) -> list[tuple[int, int]]:
    return [tuple(row) for row in rows.tolist()]


# pair_mask, MeanCurve


def test_pair_mask_leaves_out_itself_its_group_and_what_is_too_close():
    km = torch.tensor([[0.0, 1.0, 50.0], [1.0, 0.0, 50.0], [50.0, 50.0, 0.0]])
    assert pair_mask(km).tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert pair_mask(km, min_km=2.0).tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    assert pair_mask(km, torch.tensor([4, 5, 4])).tolist() == [
        [False, True, False],
        [True, False, True],
        [False, True, False],
    ]


def test_curve_is_the_mean_by_bucket_and_forgets():
    km = torch.tensor([[0.0, 50.0, 100.0], [50.0, 0.0, 150.0], [100.0, 150.0, 0.0]])
    similarity = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]])
    curve = MeanCurve(EDGES, momentum=0.5)
    assert curve.means().isnan().all()
    curve.update(similarity, km, pair_mask(km))
    assert curve.value(torch.tensor([0.0, 99.0, 100.0, 199.0])).tolist() == pytest.approx([0.8, 0.8, 0.3, 0.3])
    assert curve.value(torch.tensor([200.0, 9000.0])).isnan().all()
    near_only = pair_mask(km) & (km < 100)
    curve.update(0 * similarity, km, near_only)
    assert curve.value(torch.tensor([50.0])).item() == pytest.approx(0.8 * 0.5 / 1.5)
    assert curve.value(torch.tensor([150.0])).item() == pytest.approx(0.3)


def test_curve_goes_through_a_state_dict():
    curve = curve_of(*places(20))
    again = MeanCurve(EDGES)
    again.load_state_dict(curve.state_dict())
    assert torch.equal(again.count, curve.count) and torch.equal(again.total, curve.total)


@pytest.mark.parametrize("bad", [{"edges": ()}, {"edges": (2.0, 1.0)}, {"edges": (0.0, 1.0)}, {"momentum": 1.0}])
def test_curve_refuses(bad):
    with pytest.raises(KitError, match="allowed"):
        MeanCurve(**bad)


# mine


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 14), seed=st.integers(0, 10**6), budget=st.integers(1, 300), hidden=st.floats(0, 0.8))
def test_mined_pairs_are_those_that_loops_allow(n, seed, budget, hidden):
    similarity, km, mask = places(n, seed)
    shut = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < hidden
    mask = mask & ~(shut | shut.T)
    curve = curve_of(similarity, km, mask)
    cells_near, cells_far = looped(similarity, km, mask, curve)
    near, far = mining.mine(similarity, km, mask, curve, budget, generator=torch.Generator().manual_seed(1))
    assert near.shape == far.shape == ((budget, 2) if cells_near else (0, 2))
    assert bool(cells_near) == bool(cells_far)
    assert set(pairs_of(near)) <= set().union(*cells_near.values())
    assert set(pairs_of(far)) <= set().union(*cells_far.values())
    gap = curve.bucket(km[far[:, 0], far[:, 1]]) - curve.bucket(km[near[:, 0], near[:, 1]])
    assert (gap >= 2).all() and (km[far[:, 0], far[:, 1]] > 2 * km[near[:, 0], near[:, 1]]).all()
    if budget >= 2 * max(len(cells_near), len(cells_far)):
        assert all(pairs & set(pairs_of(near)) for pairs in cells_near.values())
        assert all(pairs & set(pairs_of(far)) for pairs in cells_far.values())


def test_no_cell_dominates_and_each_goes_through_its_pairs():
    similarity, km, mask = places(40, spread=0.05)
    curve = curve_of(similarity, km, mask)
    cells_near, cells_far = looped(similarity, km, mask, curve)
    sizes = [len(pairs) for pairs in cells_near.values()]
    assert max(sizes) > 8 * min(sizes)
    near, far = mining.mine(similarity, km, mask, curve, 2000)
    for cells, lead in ((cells_near, pairs_of(near)[:1000]), (cells_far, pairs_of(far)[1000:])):
        cell_of = {pair: cell for cell, pairs in cells.items() for pair in pairs}
        taken = Counter(cell_of[pair] for pair in lead)
        assert set(taken) == set(cells) and max(taken.values()) - min(taken.values()) <= 1
        for cell, pairs in cells.items():
            uses = Counter(pair for pair in lead if cell_of[pair] == cell)
            assert len(uses) == min(len(pairs), taken[cell]) and max(uses.values()) - min(uses.values()) <= 1


def test_the_same_random_numbers_choose_the_same_pairs():
    similarity, km, mask = places(30)
    curve = curve_of(similarity, km, mask)

    def chosen(seed):
        torch.manual_seed(seed)
        return torch.cat(mining.mine(similarity, km, mask, curve, 100))

    assert torch.equal(chosen(1), chosen(1)) and not torch.equal(chosen(1), chosen(2))


def test_nothing_to_mine_gives_no_pairs_and_no_loss():
    similarity, km, mask = places(6)
    near, far = mining.mine(similarity, km, mask & False, MeanCurve(EDGES), 10)
    similarity.requires_grad_()
    loss = mining.cosent(similarity, near, far)
    loss.backward()
    assert near.shape == far.shape == (0, 2) and loss.item() == 0 and (similarity.grad == 0).all()


def test_mine_refuses():
    similarity, km, mask = places(6)
    with pytest.raises(KitError, match="budget 0"):
        mining.mine(similarity, km, mask, MeanCurve(EDGES), 0)
    with pytest.raises(KitError, match=r"similarity \(5, 6\)"):
        mining.mine(similarity[:5], km, mask, MeanCurve(EDGES), 1)


# violations


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 10**6), digits=st.integers(0, 3))
def test_violations_count_what_loops_count(n, seed, digits):
    similarity, km, mask = places(n, seed)
    similarity = similarity.mul(10**digits).round()  # ties, which are no violations
    curve = MeanCurve(EDGES)
    bucket = curve.bucket(km)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    ordered = [(a, b) for a in pairs for b in pairs if bucket[b] - bucket[a] >= 2]
    wrong = sum(bool(similarity[a] < similarity[b]) for a, b in ordered)
    assert [int(x) for x in mining.violations(similarity, km, mask, curve)] == [wrong, len(ordered)]


def test_violations_of_a_perfect_and_of_a_reversed_similarity():
    _, km, mask = places(30)
    wrong, compared = mining.violations(-km, km, mask, MeanCurve(EDGES))
    assert wrong == 0 < compared
    assert mining.violations(km, km, mask, MeanCurve(EDGES))[0] == compared


# cosent


def test_cosent_by_hand():
    similarity = torch.tensor([[1.0, 0.2, 0.5], [0.2, 1.0, 0.1], [0.5, 0.1, 1.0]])
    near, far = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 2], [0, 1]])
    wanted = math.log(1 + math.exp(20 * 0.3) + math.exp(20 * 0.1))
    assert mining.cosent(similarity, near, far).item() == pytest.approx(wanted, rel=1e-5)
    assert mining.cosent(similarity, near, far, scale=0.0).item() == pytest.approx(math.log(3))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0, 1e4), half=st.booleans())
def test_losses_have_finite_gradients(seed, factor, half):
    similarity, km, mask = places(8, seed)
    mask[0] = mask[:, 0] = False
    leaf = (similarity * factor).to(torch.bfloat16 if half else torch.float32).requires_grad_()
    near, far = mining.mine(leaf, km, mask, curve_of(leaf, km, mask), 50)
    loss = mining.cosent(leaf, near, far) + mining.info_nce(leaf, km, mask, near_km=500.0)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and leaf.grad.isfinite().all()
    assert (leaf.grad[0] == 0).all()


def test_cosent_draws_the_near_pair_together_and_pushes_the_far_pair_apart():
    similarity = torch.zeros(3, 3, requires_grad=True)
    mining.cosent(similarity, torch.tensor([[0, 1]]), torch.tensor([[0, 2]])).backward()
    assert similarity.grad[0, 1] < 0 < similarity.grad[0, 2] and similarity.grad.count_nonzero() == 2


# info_nce


def test_info_nce_by_hand():
    km = torch.tensor([[0.0, 100.0, 200.0], [100.0, 0.0, 250.0], [200.0, 250.0, 0.0]])
    similarity = torch.tensor([[9.0, 0.1, 0.3], [0.1, 9.0, 0.2], [0.3, 0.2, 9.0]])
    rows = []
    for (km_a, s_a), (km_b, s_b) in [((100, 0.1), (200, 0.3)), ((100, 0.1), (250, 0.2)), ((200, 0.3), (250, 0.2))]:
        target = np.exp([-km_a / 100, -km_b / 100])
        share = np.exp([s_a / 0.5, s_b / 0.5])
        rows.append(-(target / target.sum() * np.log(share / share.sum())).sum())
    found = mining.info_nce(similarity, km, pair_mask(km), temperature=0.5, near_km=100.0)
    assert found.item() == pytest.approx(np.mean(rows), rel=1e-5)


def test_info_nce_skips_rows_without_a_near_place():
    km = torch.tensor([[0.0, 10.0, 900.0], [10.0, 0.0, 900.0], [900.0, 900.0, 0.0]])
    similarity = torch.tensor([[1.0, 0.4, 0.1], [0.4, 1.0, 0.2], [0.1, 0.2, 1.0]], requires_grad=True)
    mask = pair_mask(km)
    assert mining.has_near(km, mask, 10.0).tolist() == [True, True, False]
    loss = mining.info_nce(similarity, km, mask, temperature=1.0, near_km=10.0)
    loss.backward()
    wanted = [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(-0.2))]
    assert loss.item() == pytest.approx(np.mean(wanted), rel=1e-5)
    assert (similarity.grad[2] == 0).all() and (similarity.grad[0] != 0).any()
    alone = mining.info_nce(similarity, km, mask, near_km=1.0)
    assert alone.item() == 0 and alone.requires_grad


def test_info_nce_refuses():
    similarity, km, mask = places(3)
    with pytest.raises(KitError, match=r"temperature 0.*above 0"):
        mining.info_nce(similarity, km, mask, temperature=0.0)
