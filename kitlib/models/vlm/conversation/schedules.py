"""Schedules over training: the reward's tau, the geohash lengths, and teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence

from kitlib.core.errors import KitError

SCHEDULES = ("fixed", "geometric", "linear", "stepped")


def tau_at(step: int, n_steps: int, kind: str, first_km: float, last_km: float, levels: int = 4) -> float:
    """The tau in km at a training step, 0 to n_steps - 1: a function of the step alone, the same after a resume.

    "geometric" and "linear" go from first_km to last_km, "stepped" in `levels` geometric steps of equal length, "fixed"
    is last_km throughout. Steps beyond the last have the last one's tau.

    >>> [round(tau_at(step, 3, "geometric", 2000, 25)) for step in range(3)], tau_at(0, 3, "fixed", 2000, 25)
    ([2000, 224, 25], 25.0)
    """
    if kind not in SCHEDULES:
        raise KitError(f"tau_schedule: expected one of {', '.join(SCHEDULES)}; got {kind!r}")
    _check_step(step, n_steps)
    if levels < 2 or not (first_km > 0 and last_km > 0):
        raise KitError(f"tau: expected at least 2 levels and more than 0 km; got {levels}, {first_km}, {last_km}")
    share = min(step / (n_steps - 1), 1.0) if n_steps > 1 else 1.0
    levels = min(levels, n_steps)
    if kind == "stepped" and levels > 1:
        share = min(step * levels // n_steps, levels - 1) / (levels - 1)
    if kind == "fixed" or share == 1:
        return float(last_km)
    if kind == "linear":
        return float(first_km + (last_km - first_km) * share)
    return float(first_km * (last_km / first_km) ** share)


def lengths_at(step: int, n_steps: int, lengths: Sequence[int]) -> tuple[int, ...]:
    """The geohash lengths of a training step: the first only, then the first two, and so on, in equal parts.

    >>> [lengths_at(step, 3, (2, 4, 6)) for step in range(3)]
    [(2,), (2, 4), (2, 4, 6)]
    """
    _check_step(step, n_steps)
    return tuple(lengths[: min(step * len(lengths) // n_steps, len(lengths) - 1) + 1])


def forcing_at(step: int, n_steps: int, first: float) -> float:
    """The probability of teacher forcing at a training step, falling linearly from `first` to 0 at the last."""
    _check_step(step, n_steps)
    return float(first * max(0.0, 1 - step / (n_steps - 1))) if n_steps > 1 else 0.0


def _check_step(step: int, n_steps: int) -> None:
    if step < 0 or n_steps < 1:
        raise KitError(f"step: expected steps from 0 of at least 1; got {step} of {n_steps}")
