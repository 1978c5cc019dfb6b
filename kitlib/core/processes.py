"""Processes that another process of the kit starts."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_SECONDS = 1.0  # between two looks at the parent


def end_with_parent() -> None:
    """Send this process SIGTERM as soon as the one that started it is gone, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
