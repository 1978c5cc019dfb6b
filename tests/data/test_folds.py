from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from data_helper import competition
from hypothesis import given, settings
from hypothesis import strategies as st

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data import folds, pictures, places, readers
from kitlib.geo import grid

KM = 1 / grid.KM_PER_DEGREE  # degrees of latitude


def spread(n: int = 600, n_states: int = 6, seed: int = 0) -> places.Places:
    """Places around six clusters, one a state."""
    rng = np.random.default_rng(seed)
    states = np.sort(rng.integers(0, n_states, n))
    centres = np.stack([np.linspace(28, 62, n_states), np.linspace(-150, -75, n_states)], axis=1)
    points = centres[states] + rng.normal(0, 0.8, (n, 2))
    table = pd.DataFrame({"split": "train", "sample_id": np.arange(n) * 3, "image_only": "a.jpg", "state": "s"})
    table["state_idx"], table["latitude"], table["longitude"] = states, points[:, 0], points[:, 1]
    names = pd.DataFrame({"state_idx": range(n_states), "state": [f"s{i}" for i in range(n_states)]})
    return places.Places("spread", folder=None, table=table, states=names)  # type: ignore[arg-type]


def test_groups_need_nearness_and_likeness_or_the_same_spot():
    points = np.array([[40, -75], [40 + 0.04 * KM, -75], [40 + 0.08 * KM, -75], [41, -75], [41 + 0.01 * KM, -75]])
    hashes = np.random.default_rng(0).integers(1, 2**63, (5, 2)).astype(np.uint64)
    assert folds.near_duplicate_groups(points).tolist() == [0, 0, 0, 1, 1]  # in turn
    hashes[1, 0] = hashes[0, 0] ^ np.uint64(63)  # six bits
    assert folds.near_duplicate_groups(points, hashes).tolist() == [0, 0, 1, 2, 2]
    hashes[1, 0] ^= np.uint64(64)  # a seventh bit
    assert folds.near_duplicate_groups(points, hashes).tolist() == [0, 1, 2, 3, 3]
    hashes[1] = 0  # a blurred place cannot be compared: near is enough
    assert folds.near_duplicate_groups(points, hashes).tolist() == [0, 0, 0, 1, 1]
    assert folds.near_duplicate_groups(points[:1], hashes[:1]).tolist() == [0]


@settings(max_examples=30, deadline=None)
@given(st.floats(-89, 89), st.floats(-180, 180), st.sampled_from([5.0, 50.0, 500.0]))
def test_blocks_are_about_as_wide_as_high(latitude, longitude, block_km):
    steps = (np.arange(-40, 41) / 10) * block_km * KM
    north = np.stack([np.clip(latitude + steps, -90, 90), np.full(81, longitude)], axis=1)
    wide = np.stack([np.full(81, latitude), longitude + steps / max(np.cos(np.radians(latitude)), 0.05)], axis=1)
    wide[:, 1] = (wide[:, 1] + 180) % 360 - 180
    for line in (north, wide):
        block = grid.blocks(line, block_km)
        for one in np.unique(block):
            inside = line[block == one]
            assert geo.distance_km(inside[:, None], inside[None]).max() < 2.5 * block_km
    assert len(np.unique(grid.blocks(north, block_km))) >= 5 or abs(latitude) > 80


def test_blocks_meet_at_the_date_line_and_at_a_pole():
    assert len(set(grid.blocks(np.array([[10.0, 180.0], [10.0, -180.0]]), 50))) == 1
    assert len(set(grid.blocks(np.array([[90.0, 0.0], [90.0, 120.0]]), 500))) <= 2


def test_folds_are_balanced_whole_and_repeatable():
    read = spread()
    table = folds.make(read, n_folds=5, block_km=50)
    assert list(table.columns) == ["sample_id", "group", "stratified", "spatial"]
    assert table["sample_id"].tolist() == read.sample_id("train").tolist()
    assert set(table["stratified"]) == set(table["spatial"]) == set(range(5))
    state = read.state_position("train")
    counts = pd.crosstab(state, table["stratified"]).to_numpy()
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    assert np.ptp(table["stratified"].value_counts()) <= 6
    counts = pd.crosstab(state, table["spatial"]).to_numpy()
    assert (counts / counts.sum(axis=1, keepdims=True)).max() < 0.35
    assert (table.groupby(grid.blocks(read.points("train"), 50))["spatial"].nunique() == 1).all()
    pd.testing.assert_frame_equal(table, folds.make(read, n_folds=5, block_km=50))
    assert (table["stratified"] != folds.make(read, seed=1)["stratified"]).any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([10.0, 60.0]))
def test_near_duplicates_never_straddle_a_fold(seed, n_folds, block_km):
    read = spread(300, seed=seed)
    rng = np.random.default_rng(seed)
    copies = rng.integers(0, 300, 120)
    read.table.loc[rng.choice(300, 120, replace=False), ["latitude", "longitude"]] = read.points("train")[
        copies
    ] + rng.normal(0, 0.005 * KM, (120, 2))
    table = folds.make(read, n_folds=n_folds, block_km=block_km)
    pairs = geo.pairs_within_km(read.points("train"), 0.02)
    assert len(pairs) > 20
    for kind in folds.KINDS:
        fold = table[kind].to_numpy()
        assert (fold[pairs[:, 0]] == fold[pairs[:, 1]]).all()


def test_too_few_pieces_or_bad_settings_are_refused():
    read = spread(40)
    with pytest.raises(KitError, match=r"only [1-6] blocks of 5000 km, too few for 7 folds"):
        folds.make(read, n_folds=7, block_km=5000)
    with pytest.raises(KitError, match="only 40 groups of near-duplicates, too few for 41 folds"):
        folds.make(read, n_folds=41)
    with pytest.raises(KitError, match="at least 2 folds"):
        folds.make(read, n_folds=1)
    with pytest.raises(KitError, match="more than 0 km"):
        folds.make(read, block_km=0)


def with_hashes(monkeypatch, hashes: np.ndarray) -> None:
    monkeypatch.setattr(pictures, "pack", lambda places, split: SimpleNamespace(hashes=hashes))


def test_saved_once_and_a_changed_file_is_refused(home, monkeypatch):
    read = spread()
    hashes = np.arange(1, 601, dtype=np.uint64)[:, None]
    with_hashes(monkeypatch, hashes)
    with pytest.raises(KitError, match="no folds yet"):
        folds.folds_checksum(read)
    first = folds.load_or_make(read)
    checksum = folds.folds_checksum(read)
    assert len(checksum) == 16
    pd.testing.assert_frame_equal(folds.make(read, hashes), first)
    with_hashes(monkeypatch, np.ones((600, 1), np.uint64))
    pd.testing.assert_frame_equal(folds.load_or_make(read), first)
    with_hashes(monkeypatch, hashes)
    with pytest.raises(KitError, match=r"made with \{'n_folds': 5\}; expected .*'n_folds': 4.*delete data/derived/"):
        folds.load_or_make(read, n_folds=4)
    csv = read.derived / "folds.csv"
    text = csv.read_text()
    csv.write_text(text.replace("\n3,1,", "\n3,2,", 1))
    with pytest.raises(KitError, match=r"folds.csv was changed since it was made.*delete"):
        folds.load_or_make(read)
    csv.unlink()
    pd.testing.assert_frame_equal(folds.load_or_make(read), first)
    assert folds.folds_checksum(read) == checksum


@pytest.mark.parametrize("content", [b"", b"\x80", b'{"n_folds": 5, "blo', b"[]", b"null", b"{}", None])
def test_settings_of_folds_that_cannot_be_read_are_made_anew_if_the_folds_are_those(home, monkeypatch, content, caplog):
    read = spread()
    with_hashes(monkeypatch, np.arange(1, 601, dtype=np.uint64)[:, None])
    first = folds.load_or_make(read)
    csv, meta = read.derived / "folds.csv", read.derived / "folds.json"
    whole = meta.read_bytes()

    def spoil():
        meta.unlink() if content is None else meta.write_bytes(content)

    spoil()
    pd.testing.assert_frame_equal(folds.load_or_make(read), first)
    assert meta.read_bytes() == whole and "folds.json is made anew" in caplog.text
    spoil()
    csv.write_text(csv.read_text().replace("\n3,1,", "\n3,2,", 1))
    with pytest.raises(KitError, match=r"folds\.csv: expected the folds that .*; got others: delete data/derived/"):
        folds.load_or_make(read)


def test_the_same_folds_whoever_asks_first(world):
    pack = pictures.pack(world, "train")
    pd.testing.assert_frame_equal(folds.load_or_make(world, 3), folds.make(world, pack.hashes, 3))


def test_text_ids_come_back_as_text(tmp_path, home, monkeypatch):
    read = readers.read(competition(tmp_path))
    with_hashes(monkeypatch, np.zeros((len(read.rows("train")), 4), np.uint64))
    read.table["sample_id"] = read.table["sample_id"].astype(str).str.zfill(4)
    made = folds.load_or_make(read, n_folds=2, block_km=5)
    assert made["sample_id"][7] == "0007"
    assert folds.load_or_make(read, n_folds=2, block_km=5)["sample_id"].tolist() == made["sample_id"].tolist()


def test_real_us(real_us, home):
    read = readers.read(real_us)
    table = folds.make(read)
    assert np.ptp(table["stratified"].value_counts()) <= 3 and np.ptp(table["spatial"].value_counts()) <= 8
    points = read.points("train")
    apart = {
        kind: min(geo.nearest(points[table[kind] == f], points[table[kind] != f])[0].min() for f in range(5))
        for kind in folds.KINDS
    }
    assert apart["spatial"] > apart["stratified"]


def test_the_gap_is_the_distance_to_the_nearest_place_of_another_fold():
    points = np.column_stack([np.linspace(30, 45, 40), np.linspace(-110, -80, 40)])
    fold = np.arange(40) % 4
    km = geo.distance_matrix_km(points).astype(float)
    km[fold[:, None] == fold] = np.inf
    np.testing.assert_allclose(folds.gap_km(points, fold), km.min(1), rtol=1e-5)
