"""Places whose replies earn different rewards come more often, none is lost, and the draws can be repeated."""

import numpy as np
import pytest

from kitlib.models.vlm.curriculum import Curriculum


def drawn(curriculum: Curriculum, steps: int = 2000) -> np.ndarray:
    """How often each place is drawn in groups of two."""
    draws = np.concatenate([curriculum.draw(step, 2) for step in range(steps)])
    return np.bincount(draws, minlength=len(curriculum.spread)) / steps / 2


def test_places_are_drawn_by_the_spread_of_their_rewards():
    curriculum = Curriculum(10, 1.0, seed=0)
    assert curriculum.weights().tolist() == [0.1] * 10
    curriculum.update(np.array([0, 1]), np.array([0.0, 0.4]))
    even, wide, mean = 0.1, 2.0, 1.0  # shares of the mean spread, the first by the floor
    expected = np.array([even, wide, *[mean] * 8]) / (even + wide + 8 * mean)
    assert curriculum.weights() == pytest.approx(expected)
    often = drawn(curriculum)
    assert often[0] > 0 and often[1] > 1.5 * often[2:].max() and often[2:].min() > 5 * often[0]
    stronger = Curriculum(10, 2.0, seed=0)
    stronger.update(np.array([0, 1]), np.array([0.0, 0.4]))
    assert stronger.weights()[1] / stronger.weights()[2] == pytest.approx(4)


def test_recent_rewards_count_more_and_equal_ones_everywhere_are_uniform():
    curriculum = Curriculum(3, 1.0, seed=0)
    for spread in (0.8, 0.4, 0.0):
        curriculum.update(np.array([2]), np.array([spread]))
    assert curriculum.spread[2] == pytest.approx(0.3) and np.isnan(curriculum.spread[:2]).all()
    nothing = Curriculum(3, 1.0, seed=0)
    nothing.update(np.arange(3), np.zeros(3))
    assert nothing.weights() == pytest.approx(np.full(3, 1 / 3))


def test_a_saved_curriculum_draws_the_same_places(tmp_path):
    curriculum, again = Curriculum(50, 1.0, seed=3), Curriculum(50, 1.0, seed=3)
    curriculum.update(np.arange(20), np.linspace(0, 1, 20))
    curriculum.save(tmp_path / "curriculum.npz")
    again.load(tmp_path / "curriculum.npz")
    draws = [curriculum.draw(step, 8) for step in range(5)]
    assert all(np.array_equal(one, again.draw(step, 8)) and len(set(one)) == 8 for step, one in enumerate(draws))
    assert len({tuple(one) for one in draws}) == 5
    assert not np.array_equal(draws[0], Curriculum(50, 1.0, seed=4).draw(0, 8))
