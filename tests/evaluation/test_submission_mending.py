"""What is mended in a submission, that no prediction changes, and what is refused as before."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from submission_helper import STATES, VIEWS, make_submission, make_template

from kitlib.core.errors import KitError
from kitlib.data.readers import PREDICTED
from kitlib.evaluation import submission_files
from kitlib.evaluation.submission_mending import mend

IMAGES = [f"image_{view}" for view in VIEWS]


@pytest.fixture
def mended(tmp_path):
    """Mend a table, or a text, against a template of six rows: what was mended, and the new file's text."""

    def run(table, **options):
        path, out = tmp_path / "mine.csv", tmp_path / "out.csv"
        if isinstance(table, bytes):
            path.write_bytes(table)
        else:
            table.to_csv(path, index=False)
        out.unlink(missing_ok=True)
        try:
            mends, _ = mend(path, out, make_template(6), STATES, **options)
        except KitError:
            assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.csv"]
            raise
        assert submission_files.validate(out, make_template(6), STATES) == mend(path, out, make_template(6), STATES)[1]
        return mends, out.read_text()

    return run


GOOD = make_submission().to_csv(index=False)


def test_a_good_file_is_copied_as_it_is(mended):
    assert mended(make_submission()) == ([], GOOD)


@pytest.mark.parametrize(
    ("table", "mends"),
    [
        (make_submission()[::-1], ["put the rows into the template's order"]),
        (make_submission()[make_template(1).columns[::-1]], ["put the columns into the template's order"]),
        (make_submission().drop(columns=IMAGES[1:3]), ["took image_east, image_south from the template"]),
        (make_submission().assign(image_west="x"), ["replaced image_west by the template's"]),
        (make_submission().astype(dict.fromkeys(PREDICTED[:2], float)), ["wrote 12 states as whole numbers"]),
        (make_submission().astype({"sample_id": float}), ["wrote 6 ids as whole numbers"]),
        (b"\xef\xbb\xbf" + GOOD.encode(), ["removed the byte-order mark"]),
        (GOOD.replace(",", ";").encode("utf-16"), ["wrote UTF-8 and commas instead of utf-16, semicolons"]),
        (GOOD.replace("0,img", " 0 ,img", 1).encode(), ["removed the blanks around 1 values"]),
        ((GOOD + "\n,,,\n").encode(), ["removed 2 empty rows"]),
        (make_submission().to_csv().encode(), ["removed 1 columns without a name"]),
    ],
    ids=[
        "rows",
        "columns",
        "pictures",
        "other pictures",
        "floats",
        "ids",
        "mark",
        "dialect",
        "blanks",
        "empty",
        "index",
    ],
)
def test_each_mend_is_one_line_and_gives_the_good_file(mended, table, mends):
    assert mended(table) == (mends, GOOD)


def test_missing_states_are_padded(mended):
    expected = make_submission().assign(**dict.fromkeys(PREDICTED[3:5], -1)).to_csv(index=False)
    mends, text = mended(make_submission().drop(columns=PREDICTED[3:5]))
    assert mends == ["added predicted_state_idx_4, predicted_state_idx_5: -1, no state"] and text == expected
    empty = make_submission().assign(**dict.fromkeys(PREDICTED[3:5], ""))
    assert mended(empty) == (["wrote -1 for 12 empty states"], expected)


def test_everything_at_once_and_coordinates_keep_every_digit(mended):
    table = make_submission().assign(predicted_latitude=[f"+{40 + i}.123456789012345678" for i in range(6)])
    first, text = table.sample(frac=1, random_state=0)[["sample_id", *PREDICTED]], table.to_csv(index=False)
    mends, out = mended(b"\xef\xbb\xbf" + first[first.columns[::-1]].to_csv(index=False).encode())
    assert out == text and len(mends) == 4
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(out)), pd.read_csv(io.StringIO(text)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (make_submission(4), "has 4 of 6 rows of the template; missing: sample_id 4, 5"),
        (make_submission(8), "sample_id is not in the template in 2 rows: line 8"),
        (make_submission().assign(state="Ohio"), "expected columns sample_id.*; got also state"),
        (make_submission().drop(columns=PREDICTED[1]), "missing: predicted_state_idx_2$"),
        (make_submission().drop(columns=PREDICTED[0]), "missing: predicted_state_idx_1$"),
        (make_submission().drop(columns=PREDICTED[5]), "missing: predicted_latitude$"),
        (make_submission().assign(sample_id=[0, 0, 2, 3, 4, 5]), "sample_id is repeated in 1 row: line 3"),
        (make_submission().assign(predicted_latitude=[1, 2, np.nan, 4, 5, 6]), "latitude is not a finite number"),
        (make_submission().assign(predicted_state_idx_1=1.5), "idx_1 is not a whole number in 6 rows"),
        (make_submission().assign(predicted_state_idx_1=2), "is not in the mapping of 7 states"),
        (make_submission().rename(columns={"predicted_latitude": "lat"}), "missing: predicted_latitude"),
        (b"", "not a CSV table"),
    ],
)
def test_what_cannot_be_mended_is_refused_and_nothing_is_written(mended, table, message):
    with pytest.raises(KitError, match=message):
        mended(table)


def test_a_file_in_use_is_refused(tmp_path):
    path, out = tmp_path / "mine.csv", tmp_path / "out.csv"
    make_submission()[::-1].to_csv(path, index=False)
    out.write_text("mine")
    for target, message in (
        (out, r"^out\.csv exists with other content: expected the name of a new file"),
        (path, r"^mine\.csv exists with other content"),
        (tmp_path / "out.txt", r"^--fix: expected a new file <name>\.csv; got 'out\.txt'"),
    ):
        with pytest.raises(KitError, match=message):
            mend(path, target, make_template(6), STATES)
    assert out.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    mend(path, tmp_path / "new.csv", make_template(6), STATES)
    mend(path, tmp_path / "new.csv", make_template(6), STATES)  # the same again
    assert (tmp_path / "new.csv").read_text() == GOOD
    with pytest.raises(KitError, match="the template: sample_id is repeated in 1 row"):
        mend(path, tmp_path / "b.csv", make_template(6).assign(sample_id=[0, 0, 2, 3, 4, 5]))
