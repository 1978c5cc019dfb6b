"""The headline of a notebook: the one result that a plan's report shows for it; links to files that notebooks write."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kitlib.core import paths

HEADLINE_MIME = "application/vnd.kitlib.headline+json"


@dataclass(frozen=True)
class Headline:
    """A notebook's last value: its main result and the files that it wrote. Plans and the report read it."""

    label: str
    value: str
    wrote: tuple[str, ...]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        wrote = "".join(f"<li>{_anchor(path, Path.cwd())}</li>" for path in self.wrote)
        return {
            HEADLINE_MIME: {"label": self.label, "value": self.value, "wrote": list(self.wrote)},
            "text/html": f"<p>{html.escape(self.label)}: <b>{html.escape(self.value)}</b></p><ul>{wrote}</ul>",
            "text/plain": f"{self.label}: {self.value}\n" + "\n".join(self.wrote),
        }


def headline(label: str, value: object, wrote: Sequence[Path] = ()) -> Headline:
    """Make the last value of a notebook; floats get four decimals, and paths become relative to home."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return Headline(label, text, tuple(paths.relative(path) for path in wrote))


@dataclass(frozen=True)
class Link:
    """A file under home that a notebook shows as a link."""

    path: str

    def _repr_html_(self) -> str:
        return f"<p>{_anchor(self.path, Path.cwd())}</p>"


def link(path: Path) -> Link:
    """Make a link to a file, which opens from the notebook and from the pages that are made of it."""
    return Link(paths.relative(path))


def links_from(page: str, folder: Path) -> str:
    """A page in which the links of headlines and of `link` lead to their files from `folder`."""
    return re.sub(
        r'<a(?: href="[^"]*")? data-file="([^"]*)"><code>[^<]*</code></a>',
        lambda match: _anchor(html.unescape(match.group(1)), folder),
        page,
    )


def address(path: str, folder: Path) -> str:
    """The relative address of a path under home from `folder`, "" if that is outside of home."""
    home = paths.home()
    return quote(os.path.relpath(home / path, folder)) if folder.resolve().is_relative_to(home) else ""


def _anchor(path: str, folder: Path) -> str:
    name, href = html.escape(path), address(path, folder)
    target = f' href="{href}"' if href else ""
    return f'<a{target} data-file="{name}"><code>{name}</code></a>'
