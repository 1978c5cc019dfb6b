"""Every way in which a submission file can be wrong."""

from __future__ import annotations

import doctest
import os

import numpy as np
import pytest
from submission_helper import STATES, VIEWS, make_submission, make_template

from kitlib.core.errors import KitError
from kitlib.data.readers import PREDICTED
from kitlib.evaluation import submission, submission_files


def test_example_in_docstring():
    assert doctest.testmod(submission_files).failed == 0


@pytest.fixture
def check(tmp_path):
    """Validate a table as a file, against a template of as many rows as the untouched submission."""

    def run(table, n=6, mapping=STATES, **options):
        path = tmp_path / "mine.csv"
        table.to_csv(path, index=False)
        return submission_files.validate(path, make_template(n), mapping, **options)

    return run


def test_a_good_submission_has_no_warnings_in_any_order_of_rows_and_columns(check):
    table = make_submission()
    assert check(table) == []
    assert check(table[table.columns[::-1]].sample(frac=1, random_state=0)) == []
    assert check(table.assign(predicted_state_idx_1=table["predicted_state_idx_1"].astype(float))) == []


def changed(column, row, value):
    table = make_submission().astype({column: object})
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("predicted_state_idx_1", 2, -1, r"predicted_state_idx_1 is no state in 1 row: line 4 \(sample_id 2: '-1'\)"),
        ("predicted_state_idx_1", 2, "", r"idx_1 is not a whole number in 1 row: line 4 .*neither -1 nor empty"),
        ("predicted_state_idx_1", 0, 50, r"idx_1 is no state in 1 row: line 2 .*0 to 49"),
        ("predicted_state_idx_1", 0, "inf", r"idx_1 is no state"),
        ("predicted_state_idx_3", 0, -2, r"idx_3 is no state .*-1 or empty"),
        ("predicted_state_idx_3", 0, 2.5, r"idx_3 is not a whole number in 1 row: line 2 \(sample_id 0: '2\.5'\)"),
        ("predicted_state_idx_2", 5, "Ohio", r"idx_2 is not a whole number in 1 row: line 7 \(sample_id 5: 'Ohio'\)"),
        ("predicted_state_idx_2", 5, 2, r"idx_2 is not in the mapping of 7 states in 1 row: line 7"),
        ("predicted_latitude", 1, np.nan, r"predicted_latitude is not a finite number in 1 row: line 3 .*-90 to 90"),
        ("predicted_latitude", 1, "inf", r"predicted_latitude is not a finite number"),
        ("predicted_latitude", 1, -90.1, r"predicted_latitude is out of range"),
        ("predicted_longitude", 1, "12 W", r"predicted_longitude is not a finite number in 1 row: .*'12 W'"),
        ("predicted_longitude", 1, 181, r"predicted_longitude is out of range in 1 row: .*-180 to 180"),
        ("sample_id", 3, 2, r"sample_id is repeated in 1 row: line 5 \(sample_id 2\)"),
        ("sample_id", 3, 6, r"sample_id is not in the template in 1 row: line 5 \(sample_id 6\)"),
        ("sample_id", 3, "", r"sample_id is not in the template"),
    ],
)
def test_a_value_that_kaggle_refuses_is_an_error(check, column, row, value, message):
    with pytest.raises(KitError, match=r"^mine\.csv: " + ".*" + message):
        check(changed(column, row, value))


def test_the_first_three_of_many_bad_rows_are_named(check):
    with pytest.raises(KitError, match=r"in 6 rows: line 2 \(sample_id 0: '-1'\), line 3 .*, line 4 [^,]*, …"):
        check(make_submission().assign(predicted_state_idx_1=-1))


def test_rows_and_columns_must_be_the_templates(check):
    with pytest.raises(KitError, match="has 4 of 6 rows of the template; missing: sample_id 4, 5"):
        check(make_submission(4))
    with pytest.raises(KitError, match="sample_id is not in the template in 2 rows: line 8"):
        check(make_submission(8))
    with pytest.raises(KitError, match=r"got sample_id.*missing: predicted_state_idx_5, predicted_latitude$"):
        check(make_submission().drop(columns=["predicted_latitude", "predicted_state_idx_5"]))
    with pytest.raises(KitError, match=r"expected columns sample_id.*; got also state"):
        check(make_submission().assign(state="Ohio"))
    with pytest.raises(KitError, match=r"lacks the columns image_north, .*copy them from the template, joined on samp"):
        check(make_submission().drop(columns=[f"image_{view}" for view in VIEWS]))


def test_a_file_that_is_no_table_is_an_error(tmp_path):
    template = make_template(2)
    for content, message in {
        "": "not a CSV table",
        "sample_id;a\n1;2\n": "got by semicolons sample_id, a; missing: predicted_state_idx_1",
        ",".join(template.columns) + "\n" + "1," * 12 + "1\n": "more fields than the header",
        ",".join(template.columns) + "\n": "expected at least one row; got none",
    }.items():
        (tmp_path / "x.csv").write_text(content)
        with pytest.raises(KitError, match=message):
            submission_files.validate(tmp_path / "x.csv", template)
    with pytest.raises(KitError, match=r"y\.csv is missing"):
        submission_files.validate(tmp_path / "y.csv", template)


def test_a_dialect_that_kaggle_does_not_read_is_a_warning(tmp_path):
    make_submission().to_csv(tmp_path / "mine.csv", index=False, sep=";", encoding="utf-16")
    warnings = submission_files.validate(tmp_path / "mine.csv", make_template(6), STATES)
    assert warnings == ["the table is in utf-16, semicolons: Kaggle expects UTF-8 and commas"]


def test_files_that_are_none_are_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    make_submission().to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "none.csv").write_text("sample_id,state_idx,latitude,longitude\n")
    for name, message in (
        ("folder", "folder in .* cannot be read: expected a file; got a folder"),
        ("pipe.csv", "pipe.csv in .* cannot be read: expected a file; got a pipe"),
        ("x" * 300, "x in .* cannot be read: x*: the file name is too long"),
        ("none.csv", "none.csv in .*: expected"),
    ):
        with pytest.raises(KitError, match=message):
            submission.score_files(tmp_path / name, tmp_path / "mine.csv")
        with pytest.raises(KitError, match=message):
            submission_files.validate(tmp_path / "mine.csv", tmp_path / name)


def test_lines_are_those_of_the_file(tmp_path):
    make_submission().assign(predicted_latitude=[40, 40, 40, 40, 40, 91]).to_csv(tmp_path / "mine.csv", index=False)
    lines = (tmp_path / "mine.csv").read_text().split("\n")
    (tmp_path / "mine.csv").write_text("\n".join([*lines[:2], "", "," * 11, *lines[2:]]))
    with pytest.raises(KitError, match=r"out of range in 1 row: line 9 \(sample_id 5"):
        submission_files.validate(tmp_path / "mine.csv", make_template(6))


def test_what_only_scores_badly_is_a_warning(check):
    def warning(table, **options):
        (only,) = check(table, **options)
        return only

    assert "repeated (only the first counts) in 1 row: line 2 (sample_id 0)" in warning(
        changed("predicted_state_idx_4", 0, 1)
    )
    assert "fewer than 5 states" in warning(changed("predicted_state_idx_5", 0, ""))
    assert "fewer than 5 states" in warning(changed("predicted_state_idx_5", 0, -1))
    same = make_submission()
    same[PREDICTED[:5]] = [[0, 1, 3, 4, 5]] * 6
    assert "all 6 rows name the same first state 0" in warning(same)
    constant = make_submission().assign(predicted_latitude=40.0, predicted_longitude=-100.0)
    assert "all 6 rows have the same point [40.0, -100.0]" in warning(constant)
    assert "far from the US in 1 row: line 4" in warning(changed("predicted_longitude", 2, 100))
    assert "picture names are not the template's" in warning(changed("image_east", 2, "img_000003_east.jpg"))
    unknown = warning(changed("predicted_state_idx_2", 5, 2), allow_unknown_states=True)
    assert "predicted_state_idx_2 is not in the mapping" in unknown
    assert check(changed("predicted_state_idx_2", 5, 2), mapping=None) == []


def test_swapped_coordinates_are_suspected(check):
    table = make_submission().rename(
        columns={"predicted_latitude": "predicted_longitude", "predicted_longitude": "predicted_latitude"}
    )
    with pytest.raises(KitError, match=r"out of range.*look swapped"):
        check(table)
    (warning,) = check(table.assign(predicted_latitude=-80 + np.arange(6)))
    assert "far from the US; latitude and longitude look swapped in 6 rows" in warning
