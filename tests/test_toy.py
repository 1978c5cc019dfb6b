"""The colour-coded toy set: the picture says where, the states are the quarters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import toy
from PIL import Image

from kitlib.core.errors import KitError
from kitlib.data import readers


def test_colours_and_states_follow_the_place_and_a_seed_draws_the_same(tmp_path, home):
    folder = toy.draw(tmp_path / "a", n_train=12, n_test=3, size=8, seed=1)
    read = readers.read(folder)
    assert (len(read.rows("train")), len(read.rows("test"))) == (12, 3) and read.views == ("only",)
    table = pd.read_csv(folder / "metadata.csv")
    red, green = np.array([np.asarray(Image.open(folder / "images" / name)).mean((0, 1))[:2] for name in table.image]).T
    assert np.corrcoef(red, table.latitude)[0, 1] > 0.99 and np.corrcoef(green, table.longitude)[0, 1] > 0.99
    assert set(table.state[(table.latitude > 10) & (table.longitude > 0)]) <= {"Utah"}
    again = toy.draw(tmp_path / "b", n_train=12, n_test=3, size=8, seed=1)
    assert (again / "metadata.csv").read_text() == (folder / "metadata.csv").read_text()


def test_a_folder_in_use_and_numbers_below_1_are_refused(tmp_path):
    toy.draw(tmp_path / "a", 1, 1, 4)
    with pytest.raises(KitError, match="is not empty"):
        toy.draw(tmp_path / "a")
    with pytest.raises(KitError, match="expected numbers from 1"):
        toy.draw(tmp_path / "b", n_train=0)
