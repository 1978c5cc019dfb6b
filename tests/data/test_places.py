from __future__ import annotations

import json

import pandas as pd
import pytest
from data_helper import competition, edit, found, put

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import places, readers


def test_checksum_and_key_follow_the_table(tmp_path, home):
    folder = competition(tmp_path / "a")
    first, again = readers.read(folder), readers.read(folder)
    assert first.checksum == again.checksum and len(first.checksum) == 16
    assert first.key == f"a-{first.checksum[:8]}" and first.derived == paths.derived_dir(first.key)
    edit(folder, put(0, "latitude", "61.0000001"))
    assert readers.read(folder).checksum != first.checksum


def test_states_without_places_and_strange_places_are_noted(tmp_path, home):
    folder = competition(tmp_path, n_train=30)
    edit(folder, lambda t: pd.concat([t, pd.DataFrame([{"state_idx": "9", "state": "Guam"}])]), "state_mapping.csv")
    edit(folder, put(1, "longitude", "92.3"))  # a lost minus sign
    edit(folder, lambda t: t.assign(latitude=t["latitude"].mask(t.index == 2, "34.8")))
    edit(folder, lambda t: t.assign(longitude=t["longitude"].mask(t.index == 2, "-92.4")))  # Washington in Arkansas
    read = readers.read(folder)
    assert found(read, "state without training places")["examples"] == ["Guam"]
    far = found(read, "place far from its state")
    assert far["count"] == 2
    assert far["examples"][0].startswith("1: Arkansas") and far["examples"][1].startswith("2: Washington")
    assert read.states["state_idx"].tolist() == [1, 3, 9, 46]
    assert read.state_position("train")[:3].tolist() == [0, 1, 3]


def test_text_ids_stay_text(tmp_path, home):
    folder = competition(tmp_path)
    edit(folder, lambda table: table.assign(sample_id=table["sample_id"].str.zfill(3)))
    read = readers.read(folder)
    assert read.sample_id("train")[7] == "007"
    assert read.template["sample_id"].tolist() == ["0", "1", "2"]


def test_save_writes_the_table_and_the_findings(tmp_path, home):
    folder = competition(tmp_path)
    (folder / "train_images/img_000004_south.jpg").unlink()
    read = readers.read(folder)
    seen = places.finding("missing picture", "train pictures", ["4 south", "5 south"], "from the pack")
    derived = read.save([seen, places.finding("blank picture", "test pictures", ["0 east"], "kept")])
    assert derived == read.derived
    pd.testing.assert_frame_equal(pd.read_parquet(derived / "places.parquet"), read.table, check_dtype=False)
    entries = json.loads((derived / "integrity.json").read_text())
    assert [(e["check"], e["count"]) for e in entries] == [("missing picture", 2), ("blank picture", 1)]
    assert sorted(p.name for p in derived.iterdir()) == ["integrity.json", "places.parquet"]


def test_finding_keeps_a_few_examples_and_the_count():
    entry = places.finding("blank picture", "train pictures", range(20), "kept")
    assert entry["count"] == 20 and entry["examples"] == list(range(8))
    json.dumps(entry)


def test_refuse_names_the_first_rows_and_their_values():
    rows = pd.DataFrame({"sample_id": range(9), "state": list("abcdefghi")})
    places.refuse([False] * 9, rows, "never")
    with pytest.raises(
        KitError, match=r"^t.csv: wrong: sample_id 1 \(b\), 2 \(c\), 3 \(d\), 4 \(e\), 5 \(f\) and 3 more$"
    ):
        places.refuse(rows["sample_id"] > 0, rows, "t.csv: wrong", ["state"])
