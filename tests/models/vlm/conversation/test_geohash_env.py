"""Geohash turns: parsed geohashes, teacher forcing, and rewards that a bad start cannot raise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.geo import distance_km
from kitlib.geo.geohash import ALPHABET, decode, encode
from kitlib.models.vlm.conversation.geohash_env import GeohashTurns, read_geohash
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.schedules import forcing_at, lengths_at

TRUTH = Reply((57.64911, 10.40744))  # u4pruydqqvj
WORD = st.text(ALPHABET, min_size=1, max_size=6)
GUESS = st.one_of(st.just(""), st.sampled_from(["u4", "u4pr", "u4pruy", "u4 or u5", "<think>u4", "il"]), WORD)


def play(env, replies) -> list:
    return [env.step(reply) for reply in replies]


def turns(**options) -> GeohashTurns:
    defaults = {"lengths": (2, 4, 6), "forcing": 0.0, "bonus": 1.0, "tau_km": 25.0}
    return GeohashTurns(["only"], TRUTH, **defaults | options)


def text(message) -> str:
    return message["content"][-1]["text"]


@pytest.mark.parametrize(
    ("reply", "length", "word"),
    [
        ("u4", 2, "u4"),
        ("U4PR", 4, "u4pr"),
        (" **u4pr**. ", 4, "u4pr"),
        ("Geohash: u4", 2, "u4"),
        ("The sea.\nGeohash: `u4`\n", 2, "u4"),
        ('{"geohash": "u4"}', 2, "u4"),
        ("<think>u5</think>u4", 2, "u4"),
        ("Geohash: u4\nGeohash: u4", 2, "u4"),
        ("u4p", 2, None),
        ("u", 2, None),
        ("ua", 2, None),
        ("u4 u5", 2, None),
        ("u4, u5", 2, None),
        ("Geohash: u4\nGeohash: u5", 2, None),
        ("Geohash: u4 or u5", 2, None),
        ("It is u4", 2, None),
        ("<think>u4</think>", 2, None),
        ("<think>u4", 2, None),
        ("", 2, None),
        ("u4" * 10**5, 2, None),
    ],
)
def test_one_geohash_of_the_length_asked_for(reply, length, word):
    assert read_geohash(reply, length) == word


def test_the_right_prefixes_earn_all_that_centres_can():
    steps = play(turns(tau_km=25.0), ["u4", "u4pr", "u4pruy"])
    assert [step.metrics["right"] for step in steps] == [1.0] * 3 and steps[-1].done
    assert 1.5 < sum(step.reward for step in steps) <= 2
    assert all(step.reward > 0 for step in steps)
    assert steps[2].metrics["km"] < steps[1].metrics["km"] < steps[0].metrics["km"]


@given(st.lists(GUESS, min_size=3, max_size=3), st.floats(0, 3))
def test_the_bonus_sums_to_the_last_score(replies, bonus):
    total = sum(step.reward for step in play(turns(bonus=bonus, tau_km=500.0), replies))
    shares = sum(step.reward for step in play(turns(bonus=0.0, tau_km=500.0), replies))
    last = read_geohash(replies[2], 6)
    score = 0.0 if last is None else np.exp(-distance_km(decode(last), TRUTH.point) / 500.0)
    assert total == pytest.approx(shares + bonus * score, abs=1e-9)


@given(st.lists(GUESS, min_size=3, max_size=3), st.integers(0, 2), st.floats(0, 1), st.integers(0, 20))
def test_naming_the_right_cell_instead_never_earns_less(replies, turn, forcing, seed):
    right = [str(encode(TRUTH.point, length)) for length in (2, 4, 6)]
    better = [right[i] if i == turn else reply for i, reply in enumerate(replies)]
    before, after = (
        sum(step.reward for step in play(turns(forcing=forcing, seed=seed, tau_km=500.0), words))
        for words in (replies, better)
    )
    km = distance_km(decode(right[turn]), TRUTH.point)
    code = read_geohash(replies[turn], len(right[turn]))
    if code is None or distance_km(decode(code), TRUTH.point) >= km:
        assert after >= before - 1e-9


def test_the_teacher_gives_the_true_prefix_without_credit():
    forced, alone = turns(forcing=1.0, tau_km=500.0), turns(tau_km=500.0)
    helped, own = (play(env, ["00", "u4pr", "u4pruy"]) for env in (forced, alone))
    assert text(helped[0].message).startswith("Go on from u4,") and text(own[0].message).startswith("Go on from 00,")
    assert helped[1].reward < own[1].reward
    assert "3 characters" not in text(forced.messages()[0]) and "first 2 characters" in text(turns().messages()[0])
    assert text(play(turns(), [""])[0].message).startswith("Your reply named no geohash.")


def test_the_teacher_is_seeded_and_deaf():
    def given_prefixes(seed, replies):
        env = turns(forcing=0.5, seed=seed, lengths=(1, 2, 3, 4, 5, 6))
        return [text(step.message)[:20] for step in play(env, replies)[:-1]], env.forced.tolist()

    replies = ["u", "u4", "u4p", "u4pr", "u4pru", "u4pruy"]
    assert given_prefixes(3, replies) == given_prefixes(3, replies)
    assert given_prefixes(3, replies)[1] == given_prefixes(3, [""] * 6)[1]
    assert len({tuple(given_prefixes(seed, replies)[1]) for seed in range(9)}) > 1
    share = np.mean([turns(forcing=0.3, seed=seed).forced for seed in range(400)])
    assert share == pytest.approx(0.3, abs=0.05)


def test_lengths_grow_and_the_teacher_retires():
    assert [lengths_at(step, 6, (2, 4, 6)) for step in (0, 2, 4, 99)] == [(2,), (2, 4), (2, 4, 6), (2, 4, 6)]
    assert [forcing_at(step, 5, 0.8) for step in (0, 2, 4, 9)] == pytest.approx([0.8, 0.4, 0.0, 0.0])
    for function, start in ((lengths_at, (2, 4)), (forcing_at, 0.5)):
        with pytest.raises(KitError, match="steps from 0"):
            function(-1, 5, start)


def test_a_place_without_a_point_is_refused():
    with pytest.raises(KitError, match="it has no point"):
        GeohashTurns(["only"], Reply(city="Skagen"), lengths=(2,), forcing=0.0, bonus=1.0, tau_km=25.0)
