"""Mend a submission file without touching a prediction: its encoding, rows, columns, padding and whole numbers."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data import tables
from kitlib.data.readers import PREDICTED
from kitlib.evaluation import ledger
from kitlib.evaluation.submission_files import (
    ANY_STATE_IDX,
    POINT,
    RANKS,
    check,
    predictions,
    read,
    read_rules,
    refuse,
)

NAMELESS = re.compile(r"\s*Unnamed: \d+\s*$")  # as pandas calls a column that had no name


def mend(
    submission_csv: str | Path,
    out: str | Path,
    template: str | Path | pd.DataFrame,
    mapping: str | Path | pd.DataFrame | None = None,
    allow_unknown_states: bool = False,
) -> tuple[list[str], list[str]]:
    """Write a submission to `out` as the template has it; return what was mended, and the warnings of `validate`.

    Mended are the encoding, separators, blanks, the order of rows and columns, whole numbers such as 3.0, states that
    are missing behind the others (-1), and every column that is no prediction, which becomes the template's. Raises
    KitError, and writes nothing, for all else that `validate` refuses, and if `out` exists with other content.
    """
    path, out = Path(submission_csv), Path(out)
    if out.suffix != ".csv":
        raise KitError(f"--fix: expected a new file <name>.csv; got {out.name!r}")
    template, mapping = read_rules(template, mapping)
    known = template["sample_id"].astype(str)
    refuse(template, known.duplicated(), "the template", "sample_id", "is repeated")
    table = read(path, ["sample_id", RANKS[0], *POINT])
    mends = _in_the_text(path, table.attrs["dialect"])
    table, completed = _completed(table, path, template)
    check(table, path.name, template, mapping, allow_unknown_states)
    ranked, points = predictions(table, path.name, known, "the template", ANY_STATE_IDX)
    states = pd.DataFrame(ranked.astype(str), table.index, RANKS)
    order = pd.Index(table["sample_id"]).get_indexer(pd.Index(known))
    empty = int((table[RANKS] == "").to_numpy().sum())
    fractions = int((table[RANKS] != states).to_numpy().sum()) - empty
    mends += completed + [f"wrote -1 for {empty:,} empty states"] * bool(empty)
    mends += [f"wrote {fractions:,} states as whole numbers"] * bool(fractions)
    mends += ["put the rows into the template's order"] * bool((order != np.arange(len(order))).any())
    with ledger.lock(out), storage.atomic_write(out) as beside:
        mended = table.assign(**states)[list(template)].iloc[order]
        mended.to_csv(beside, index=False, lineterminator="\n")
        written = read(beside, list(template.columns))
        now = predictions(written, out.name, known, "the template", ANY_STATE_IDX)
        if not (np.array_equal(ranked[order], now[0]) and np.array_equal(points[order], now[1])):
            raise AssertionError(f"{out.name}: a prediction would have changed")
        warnings = check(written, out.name, template, mapping, allow_unknown_states)
        if out.is_file() and out.read_bytes() != beside.read_bytes():
            raise KitError(f"{out.name} exists with other content: expected the name of a new file")
    return mends, warnings


def _completed(table: pd.DataFrame, path: Path, template: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A table by `read` with the template's ids and all its columns, in its own order of rows; and what was mended."""
    given, ids, known = [str(column) for column in table], table["sample_id"], template["sample_id"].astype(str)
    padding = [rank for rank in RANKS if rank not in given]
    if padding != RANKS[len(RANKS) - len(padding) :]:  # between others: a prediction was lost
        read(path, ["sample_id", *PREDICTED])
    whole = ids.str.replace(r"\.0+$", "", regex=True)
    whole = ids.where(ids.isin(known) | ~whole.isin(known), whole)
    own = template.set_index(known).drop(columns=["sample_id", *PREDICTED]).astype(str)
    own = own.reindex(whole).set_axis(table.index).fillna("")
    copied = [str(column) for column in own]
    absent = [column for column in copied if column not in given]
    other = [column for column in copied if column in given and (table[column] != own[column]).any()]
    mends = {
        f"took {', '.join(absent)} from the template": absent,
        f"replaced {', '.join(other)} by the template's": other,
        f"added {', '.join(padding)}: -1, no state": padding,
        f"wrote {int((whole != ids).sum()):,} ids as whole numbers": (whole != ids).any(),
        "put the columns into the template's order": given != [column for column in template if column in given],
    }
    table = table.assign(sample_id=whole, **own, **dict.fromkeys(padding, "-1"))
    return table, [text for text, found in mends.items() if found]


def _in_the_text(path: Path, dialect: str) -> list[str]:
    """What `read` has mended already in a file of that dialect: its encoding, separators, blanks and empty rows."""
    content, (encoding, _, name) = path.read_bytes(), dialect.partition(", ")
    text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    separators = {words: separator for separator, words in tables.SEPARATORS.items()}
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separators.get(name, ",")))
    blanks = sum(cell != cell.strip() for row in rows for cell in row)
    filled = [row for row in rows if any(cell.strip() for cell in row) and not row[0].startswith("sep=")]
    empty, nameless = len(rows) - len(filled), sum(not name.strip() or bool(NAMELESS.match(name)) for name in filled[0])
    mends = {
        "removed the byte-order mark": encoding == "utf-8" and content.startswith(codecs.BOM_UTF8),
        f"wrote UTF-8 and commas instead of {dialect}": dialect != "utf-8",
        f"removed the blanks around {blanks:,} values": blanks,
        f"removed {empty:,} empty rows": empty,
        f"removed {nameless:,} columns without a name": nameless,
    }
    return [text for text, found in mends.items() if found]
