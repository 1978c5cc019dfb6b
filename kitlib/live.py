"""A figure in a notebook that follows a training while its cell is still running.

with live.follow(run.dir / "rollouts"):
    vlm.train(...)
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kitlib import rollout_figures, rollouts

log = logging.getLogger(__name__)

SHARE = 0.1  # of the time may go into drawing


@contextmanager
def follow(folder: str | Path, every_s: float = 10.0, sample_id: str = "", note: str = "") -> Iterator[None]:
    """Show `rollout_figures.learning` of a folder of rollouts, drawn anew when there is something new, and at the end.

    Outside a notebook nothing is shown. A figure that fails is logged and never stops the training.
    """
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        yield
        return
    handle = display({"text/plain": "waiting for the first rollouts"}, raw=True, display_id=True)
    ended = threading.Event()

    def watch() -> None:
        drawn, pause = "", every_s
        while True:
            at_end = ended.wait(pause)
            began = time.monotonic()
            try:
                state = str([(file.name, file.stat().st_mtime_ns) for file in rollouts.step_files(folder)])
                if state not in (drawn, "[]"):
                    handle.update(rollout_figures.learning(rollouts.read(folder), sample_id, note=note))
                    drawn = state
            except Exception as error:
                log.warning("the live figure could not be drawn: %s", error)
            if at_end:
                return
            pause = max(every_s, (time.monotonic() - began) / SHARE)

    # the context says which cell's output this is
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True, name="live figure")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
