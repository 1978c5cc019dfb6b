"""What long work shows: one bar for each notebook cell or a line of the terminal, and the kit's log, on plain output.

A notebook gets text that is overwritten in place: widgets are dead in an executed notebook, and stderr is pink.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

from tqdm.std import tqdm

_cell: tuple[int, Any] = (-1, None)  # the number of the notebook's cell that has a bar, and IPython's handle of it


def _kernel_shell() -> Any:
    """IPython's shell in the kernel of a notebook; None in a terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if hasattr(shell, "kernel") else None


def show_log() -> None:
    """Show the kit's log in a notebook, where Python would show warnings only; elsewhere, and again, do nothing."""
    logger = logging.getLogger("kitlib")
    if _kernel_shell() is None or logger.handlers:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel("INFO")
    logger.propagate = False


class Bar(tqdm):
    """The kit's progress bar: tqdm, but in a notebook all bars of a cell share one line of text."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.line = None if options.get("disable") else _line()
        if self.line is not None:
            options |= {
                "file": io.StringIO(),
                "ascii": False,
                "mininterval": float(os.environ.get("TQDM_MININTERVAL", "0.5")),
            }
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the bar; one that is not to be left stays until the next, as text cannot be taken back."""
        if self.line is None:
            super().display(msg, pos)
        elif msg != "":
            _write(self.line, str(self) if msg is None else msg)


def end(text: str) -> None:
    """Let the line of this cell's bars end as `text`; without one, in a terminal too, do nothing."""
    shell = _kernel_shell()
    if shell is not None and _cell[0] == shell.execution_count:
        _write(_cell[1], text)


def _line() -> Any:
    """The handle of this cell's line, a new one in each cell; None in a terminal."""
    global _cell
    if (shell := _kernel_shell()) is None:
        return None
    if _cell[0] != shell.execution_count:
        from IPython.display import display

        _cell = shell.execution_count, display({"text/plain": ""}, raw=True, display_id=True)
    return _cell[1]


def _write(line: Any, text: str) -> None:
    line.update({"text/plain": text}, raw=True)
