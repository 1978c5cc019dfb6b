"""Tables of executed notebooks in HTML pages: each header over its column, numbers to the right, wide ones scroll."""

from __future__ import annotations

import re
from collections import defaultdict
from html import unescape

PANDAS = re.compile(r"<style scoped>.*?</style>", re.DOTALL)  # it would align all headers of the page
TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
ROW = re.compile(r"<tr[^>]*>.*?</tr>", re.DOTALL)
CELL = re.compile(r"<(t[hd])([^>]*)>(.*?)</\1>", re.DOTALL)
NUMBER = re.compile(
    r"[-+±−]?\d[\d,.]*(e[-+]?\d+)?( ?± ?[\d.,]+)?( ?(%|km|m|s|px))?|nan|none|-?inf|[-–]?", re.IGNORECASE
)


def tidy(html: str, words: bool = False) -> str:
    """Align the columns of all tables in `html` and put each into a box that scrolls.

    words: write names such as mean_km in headers as words; else they may break after an underscore.
    """
    return TABLE.sub(
        lambda table: f'<div class="scroll" tabindex="0">{_aligned(table.group(), words)}</div>', PANDAS.sub("", html)
    )


def _aligned(table: str, words: bool) -> str:
    head, body = re.search(r"<thead.*?</thead>", table, re.DOTALL), table
    if head:
        body = table.replace(head.group(), "")
    texts = defaultdict(list)
    for row in ROW.findall(body):
        for column, (_, attributes, content) in _from_the_right(row):
            if "colspan" not in attributes:
                texts[column].append(unescape(re.sub("<[^>]*>", "", content)).strip())
    numeric = {column for column, cells in texts.items() if any(cells) and all(map(NUMBER.fullmatch, cells))}

    def rewrite(row: re.Match[str]) -> str:
        columns = iter(sorted((c for c, _ in _from_the_right(row.group())), reverse=True))

        def cell(match: re.Match[str]) -> str:
            kind, attributes, content = match.groups()
            if next(columns) in numeric and "colspan" not in attributes:
                attributes += ' data-number=""'
            if kind == "th" and re.fullmatch(r"\w+", content):
                content = content.replace("_", " " if words else "_<wbr>")
            return f"<{kind}{attributes}>{content}</{kind}>"

        return CELL.sub(cell, row.group())

    return ROW.sub(rewrite, table)


def _from_the_right(row: str) -> list[tuple[int, tuple[str, str, str]]]:
    """The cells of a row with the number of their last column from the right, as cells over several rows stand left."""
    placed, column = [], 0
    for cell in reversed(CELL.findall(row)):
        placed.append((column, cell))
        span = re.search(r"colspan=\"?(\d+)", cell[1])
        column += int(span.group(1)) if span else 1
    return placed
