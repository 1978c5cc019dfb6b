"""CSV tables in the dialects that people save: what is beyond doubt is read, the rest is refused with its cause.

tables.parse(content, "metadata.csv in earth", ["latitude", "longitude"])
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kitlib.core.errors import KitError

BYTES = 1 << 29  # a table may have, unpacked
ROWS = 20_000_000
HEADER = 100_000  # characters that the line of names may have
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
PACKED = {b"PK": "a zip archive or an Excel workbook", b"\x1f\x8b": "compressed by gzip"}
COORDINATE = re.compile(r"(.*_)?(latitude|lat|longitude|lon|long|lng)", re.IGNORECASE)
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # no text has one; a terminal would obey some of them
LINE_END = re.compile(r"\r\n|\r|\n")


def parse(content: bytes, where: str, needed: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """Parse a CSV to stripped text ("" for an empty cell); return it with its dialect, "utf-8" or "latin-1, tabs".

    The separator is the one that splits the first line into the `needed` columns. Decimal commas of coordinates become
    points where another separator leaves no doubt; columns without a name and rows without a value are left out. Row i
    stands in line i + 2 of the file. Raises KitError, beginning with `where`, for anything else that is no plain table.
    """
    content, encoding = _as_utf8(content, where)
    if (rows := max(map(content.count, b"\r\n"))) > ROWS:
        raise KitError(f"{where}: expected at most {ROWS:,} rows; got {rows:,}")
    line, skipped, separator = _first_line(content, where)
    separator, names = _separator(line, where, needed, separator)
    if twice := [name for i, name in enumerate(names) if name and name in names[:i]]:
        raise KitError(f"{where}: expected each column once; got {twice[0]!r} twice")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # index_col: otherwise, if every row had one field too many, the first column would become the index.
            table = pd.read_csv(
                io.BytesIO(content),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                skipinitialspace=True,
                index_col=False,
                skiprows=skipped,
                skip_blank_lines=False,
            )
    except pd.errors.ParserWarning as warning:
        raise KitError(f"{where} is not a CSV table: more fields than the header has") from warning
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        if torn := re.fullmatch(r"EOF inside string starting at row (\d+)", reason):  # counted from the names, row 0
            reason = f"line {int(torn[1]) + 1} has a quotation mark that is never closed"
        raise KitError(f"{where} is not a CSV table: {reason}") from error
    if len(table.columns) != len(names) or any(LINE_END.search(str(name)) for name in table):
        raise KitError(f"{where}: expected names of columns in one line; got a quotation mark that is not closed there")
    table.columns = pd.Index(names)
    table.index += skipped
    table = table.loc[:, [bool(name) and not re.fullmatch(r"Unnamed: \d+", name) for name in names]].fillna("")
    if b'"' in content:
        _check_breaks(table, where)
    table = table.apply(lambda column: column.str.strip())
    hollow = (table.iloc[:, :1] == "").all(axis=1)
    if hollow.any():
        table = table[~(hollow & (table == "").all(axis=1))]
    if table.empty:
        raise KitError(f"{where}: expected at least one row; got none")
    if separator != ",":
        for column in filter(COORDINATE.fullmatch, table):
            table[column] = table[column].str.replace(r"^([+-]?\d+),(\d+)$", r"\1.\2", regex=True)
    return table, encoding if separator == "," else f"{encoding}, {SEPARATORS[separator]}"


def _as_utf8(content: bytes, where: str) -> tuple[bytes, str]:
    """The text in UTF-8 without a byte-order mark, and the encoding that it had."""
    for magic, kind in PACKED.items():
        if content.startswith(magic):
            raise KitError(f"{where} is {kind}, not a CSV table: unpack it, or save it as CSV")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        if encoding == "utf-16":
            content = content.decode("utf-16").encode()
        content = content.removeprefix(b"\xef\xbb\xbf")
        if found := CONTROL.search(content):
            kind = "NUL bytes" if found[0] == b"\0" else f"the control character {found[0][0]:#04x}"
            raise KitError(f"{where} is not a CSV table: it has {kind}; save it as text in UTF-8")
        content.decode()
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise KitError(f"{where} is not a CSV table: it begins as UTF-16 but is cut or damaged") from error
        encoding, content = "latin-1", content.decode("latin-1").encode()
    return content, encoding


def _first_line(content: bytes, where: str) -> tuple[str, int, str]:
    """The line of names, the number of lines above it, and the separator that Excel's `sep=;` there tells or ""."""
    lines, separator = LINE_END.split(content[:HEADER].decode(errors="ignore")), ""
    for skipped, line in enumerate(lines):
        if told := re.fullmatch(r"sep=([,;\t|])", line):
            separator = told[1]
        elif line.strip():
            if skipped == len(lines) - 1 and len(content) > HEADER:
                break
            return line, skipped, separator
    got = f"more than {HEADER:,} characters" if content.strip() else "an empty file"
    raise KitError(f"{where} is not a CSV table: expected a line with the names of columns; got {got}")


def _separator(line: str, where: str, needed: Sequence[str], told: str) -> tuple[str, list[str]]:
    """The separator of the line of names, and the names: stripped, in Unicode's composed form."""
    splits = {}
    for separator in told or SEPARATORS:
        names = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        splits[separator] = [unicodedata.normalize("NFC", name).strip() for name in names]
    fits = {s: names for s, names in splits.items() if set(needed) <= set(names)}
    most = max(map(len, (fits or splits).values()))
    widest = [s for s, names in (fits or splits).items() if len(names) == most]
    names = splits[widest[0]]
    if not fits:
        missing = ", ".join(column for column in needed if column not in names)
        by = f" by {SEPARATORS[widest[0]]}" if widest[0] != "," and most > 1 else ""
        raise KitError(f"{where}: expected columns {', '.join(needed)}; got{by} {', '.join(names)}; missing: {missing}")
    if len(widest) > 1 and most > 1:
        kinds = " and ".join(SEPARATORS[separator] for separator in widest)
        raise KitError(f"{where}: expected one separator of columns; got {kinds} in {line[:80]!r}")
    return widest[0], names


def _check_breaks(table: pd.DataFrame, where: str) -> None:
    """Refuse cells with a line break: a stray quotation mark has swallowed the rows up to the next one."""
    broken = np.zeros(len(table), bool)
    for column in table:
        broken |= table[column].str.contains("[\r\n]").to_numpy(bool)
    if broken.any():
        line = table.index[broken][0] + 2
        raise KitError(f"{where} line {line}: expected one row a line; got a quotation mark that spans several lines")
