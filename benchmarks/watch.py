"""The page of `python -m kitlib watch` with 10,000 rollouts in a real Chromium: how long a step takes to be on screen.

    OMP_NUM_THREADS=1 python benchmarks/watch.py                            measure
    OMP_NUM_THREADS=1 python benchmarks/watch.py RUN [STEPS [PICTURES]]     only write such a run, to look at

The rollouts are drawn: a model begins by guessing a continent away, a quarter of its replies unreadable, and ends some
hundred kilometres away. PICTURES is a folder of pictures NAME_VIEW.jpg to show with them; without it they are plain.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kitlib import geo
from kitlib.core import paths
from kitlib.evaluation import runs
from kitlib.geo import projection
from kitlib.models.vlm.conversation import rollouts, schedules

PLACES, GROUPS, ROLLOUTS, STEPS = 40, 4, 8, 313  # 313 steps of 4 places with 8 rollouts: 10,016
EVAL_EVERY, EVAL_PLACES = 40, 12
VIEWS = ("north", "east", "south", "west")
LIVED = np.array([[40, -95], [47, -120], [50, 10], [35, 105], [-15, -55], [-28, 140], [5, 20], [60, 40], [64, -150]])
PROMPT = """Here are four photographs of one place, to the north, east, south and west.
Where was this taken? Reply with these lines and nothing else:
Country: <name>
Coordinates: <latitude>, <longitude>
A first guess is enough, within 2,000 km."""
CLUES = (
    "the road markings are a single yellow line", "the utility poles are wooden with one crossarm",
    "cars keep to the right", "the soil is red and the sky hazy", "the vegetation looks temperate, with birches",
    "a sign is in Cyrillic letters", "the sun stands in the south", "the houses have steep roofs",
)  # fmt: skip


def places(seed: int = 0, n: int = PLACES) -> np.ndarray:
    """True places (N, 2) around where people live."""
    rng = np.random.default_rng(seed)
    points = LIVED[rng.integers(len(LIVED), size=n)] + rng.normal(0, 6, (n, 2))
    return np.column_stack([points[:, 0].clip(-60, 70), (points[:, 1] + 180) % 360 - 180])


def guesses(rng: np.random.Generator, truth: np.ndarray, spread_km: float) -> np.ndarray:
    """Points (G, 3, 2), three turns each, ever closer to the truth, in directions by chance."""
    km = np.minimum(spread_km * np.array([2, 1.2, 0.8]) * rng.lognormal(0, 0.7, (ROLLOUTS, 3)), 9000.0)
    turn = rng.uniform(0, 2 * np.pi, (ROLLOUTS, 3))
    return projection.from_local_km(km[..., None] * np.stack([np.cos(turn), np.sin(turn)], -1), truth)


def rows(
    step: int, n_steps: int, phase: str, truth: np.ndarray, chosen: np.ndarray, pictures: list[list[str]]
) -> list[dict[str, Any]]:
    """The rollouts of one step, three turns each, as `rollouts.Writer` takes them."""
    rng = np.random.default_rng([step, phase == "eval"])
    skill = step / max(n_steps - 1, 1)
    tau = schedules.tau_at(step, n_steps, "geometric", 2000.0, 25.0)
    found: list[dict[str, Any]] = []
    for place in chosen.tolist():
        points = guesses(rng, truth[place], 2500 * 0.06 ** (skill * rng.uniform(0.7, 1.1)))
        points[rng.random(points.shape[:2]) < 0.25 * (1 - skill) ** 2 + 0.01] = np.nan
        worth = np.nan_to_num(np.exp(-geo.distance_km(points, truth[place]) / tau))  # 0 where nothing was said
        km = geo.distance_km(points[:, -1], truth[place])
        earned = worth[:, -1]
        advantage = (earned - earned.mean()) / (earned.std() + 1e-4)
        for g in range(ROLLOUTS if phase == "train" else 1):
            said = [None if np.isnan(point).any() else point.tolist() for point in points[g]]
            found.append(
                {
                    "step": step, "phase": phase, "sample_id": f"place-{place:03d}", "rollout": g,
                    "environment": "Telescoping", "prompt": PROMPT, "pictures": pictures[place],
                    "replies": [reply(rng, point) for point in said], "points": said, "point": said[-1],
                    "truth": truth[place].tolist(), "rewards": np.diff(worth[g], prepend=0).tolist(),
                    "reward": earned[g], "advantage": advantage[g] if phase == "train" else None, "tau_km": tau,
                    "km": None if said[-1] is None else km[g],
                }
            )  # fmt: skip
    return found


def reply(rng: np.random.Generator, point: list[float] | None) -> str:
    """What a model may say."""
    said = "; ".join(CLUES[i] for i in rng.integers(len(CLUES), size=3))
    if point is None:
        return f"I look at the pictures: {said}. It is hard to say <where> this is & I would rather not guess."
    return f"I look at the pictures: {said}.\nCountry: somewhere\nCoordinates: {point[0]:.4f}, {point[1]:.4f}"


def stored(writer: rollouts.Writer, folder: Path | None, seed: int = 0) -> list[list[str]]:
    """Four pictures of every place."""
    rng, found = np.random.default_rng(seed), []
    names = sorted(folder.glob("*_north.jpg"))[:: max(1, 750 // PLACES)] if folder else []
    for place in range(PLACES):
        if names:
            files = [names[place].with_name(names[place].name.replace("north", view)) for view in VIEWS]
            views = np.stack([np.asarray(Image.open(file).convert("RGB").resize((256, 256))) for file in files])
        else:
            ground = rng.integers(40, 200, (4, 1, 1, 3)).astype(float)
            views = (ground + np.linspace(60, -40, 192)[None, :, None, None]).clip(0, 255).astype(np.uint8)
            views = np.broadcast_to(views, (4, 192, 256, 3))
        found.append(writer.picture(f"place-{place:03d}", views))
    return found


def draw_run(name: str, n_steps: int = STEPS, pictures: Path | None = None) -> runs.Run:
    """Write a run with the rollouts of n_steps steps, evaluated now and then."""
    run = runs.start(name, {"family": "drawn"}, data={}, overwrite=True)
    writer, truth = rollouts.Writer(run.dir / "rollouts"), places()
    names = stored(writer, pictures)
    for step in range(n_steps):
        draw_step(writer, step, n_steps, truth, names)
    return run


def draw_step(writer: rollouts.Writer, step: int, n_steps: int, truth: np.ndarray, names: list[list[str]]) -> None:
    """One training step, before it an evaluation when it is time for one."""
    if step % EVAL_EVERY == 0:
        writer.write(step, rows(step, n_steps, "eval", truth, np.arange(EVAL_PLACES), names))
    chosen = np.random.default_rng([1, step]).choice(PLACES, GROUPS, replace=False)
    writer.write(step, rows(step, n_steps, "train", truth, chosen, names))


MEASURE = """async (shares) => {
  const slider = document.getElementById("slider"), view = document.getElementById("view"), took = [];
  for (const share of shares) {
    const from = performance.now();
    view.dataset.painted = "";
    slider.value = Math.round(share * Number(slider.max));
    slider.dispatchEvent(new Event("input"));
    while (!view.dataset.painted) await new Promise((go) => setTimeout(go));
    await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));  // the frame has been handed over
    took.push(performance.now() - from);
  }
  return took;
}"""


def measure(page: Any, shares: list[float]) -> tuple[list[float], list[float]]:
    """Milliseconds from a move of the slider to the painted frame, at places of the run: first visit, and again."""
    page.wait_for_selector("#view[data-painted]")
    return sorted(page.evaluate(MEASURE, shares)), sorted(page.evaluate(MEASURE, shares))


def heap_mb(page: Any) -> float:
    """The page's JavaScript heap after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    return session.send("Runtime.getHeapUsage")["usedSize"] / 1e6


def main() -> None:
    if len(sys.argv) > 1:
        steps, pictures = int(sys.argv[2]) if len(sys.argv) > 2 else STEPS, sys.argv[3:]
        run = draw_run(sys.argv[1], steps, Path(pictures[0]) if pictures else None)
        return print(f"{paths.relative(run.dir)} is written; python -m kitlib watch {run.name}")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        os.environ["KITLIB_HOME"] = home
        began = time.perf_counter()
        draw_run("drawn")
        print(f"10,016 rollouts drawn and written in {time.perf_counter() - began:.1f} s")
        command = [sys.executable, "-m", "kitlib", "watch", "drawn", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=paths.checkout()) as server:
            assert server.stdout
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(server.stdout.readline().split()[0])
            shares = np.random.default_rng(0).random(60).tolist()
            for mode in ("place", "step"):
                page.click(f"[data-mode={mode}]")
                for visit, ms in zip(("first", "again"), measure(page, shares), strict=True):
                    told = f"median {statistics.median(ms):5.0f} ms   95 % {ms[57]:5.0f} ms"
                    print(f"  slider to frame, {mode:5} on the map, {visit} visit: {told}")
            print(f"  JavaScript heap {heap_mb(page):.1f} MB, {page.locator('*').count()} elements")
            browser.close()
            server.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
