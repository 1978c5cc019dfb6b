"""The headline of a notebook: the one result that a plan's report shows for it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitlib.core import paths

HEADLINE_MIME = "application/vnd.kitlib.headline+json"


@dataclass(frozen=True)
class Headline:
    """A notebook's last value: its main result and the files that it wrote. Plans and the report read it."""

    label: str
    value: str
    wrote: tuple[str, ...]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        wrote = "".join(f"<li><code>{html.escape(path)}</code></li>" for path in self.wrote)
        return {
            HEADLINE_MIME: {"label": self.label, "value": self.value, "wrote": list(self.wrote)},
            "text/html": f"<p>{html.escape(self.label)}: <b>{html.escape(self.value)}</b></p><ul>{wrote}</ul>",
            "text/plain": f"{self.label}: {self.value}\n" + "\n".join(self.wrote),
        }


def headline(label: str, value: object, wrote: Sequence[Path] = ()) -> Headline:
    """Make the last value of a notebook; floats get four decimals, and paths become relative to home."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return Headline(label, text, tuple(paths.relative(path) for path in wrote))
