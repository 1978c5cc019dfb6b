"""How good guesses are, from their distances alone: mean and median, Geoscore, and the share within each radius."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError

RADII_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)  # street, city, region, country, continent (Hays and Efros 2008)
GEOSCORE_MOST, GEOSCORE_KM = 5000.0, 1492.7


def geoscore(km: ArrayLike) -> np.ndarray:
    """The game's points (...) for distances (...) in km, 5000 exp(-km / 1492.7); infinitely far earns nothing.

    Source: Haas et al. 2024 (PIGEON), Astruc et al. 2024 (OpenStreetView-5M).

    >>> geoscore([0.0, 1492.7, np.inf]).round().tolist()
    [5000.0, 1839.0, 0.0]
    """
    return GEOSCORE_MOST * np.exp(-np.asarray(km, float) / GEOSCORE_KM)


@dataclass(frozen=True)
class Report:
    """What `n` distances come to: mean_km, median_km, mean geoscore, and within (R,), the shares <= radii_km (R,)."""

    n: int
    mean_km: float
    median_km: float
    geoscore: float
    radii_km: tuple[float, ...]
    within: tuple[float, ...]

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, as for metrics.json: n, mean_km, median_km, geoscore, within_1_km and so on."""
        shares = {f"within_{radius:g}_km": share for radius, share in zip(self.radii_km, self.within, strict=True)}
        return {
            "n": self.n,
            "mean_km": self.mean_km,
            "median_km": self.median_km,
            "geoscore": self.geoscore,
        } | shares

    def __str__(self) -> str:
        shares = ", ".join(
            f"{share:.1%} within {km:g} km" for km, share in zip(self.radii_km, self.within, strict=True)
        )
        return (
            f"Geoscore {self.geoscore:,.0f}, mean {self.mean_km:,.1f} km, median {self.median_km:,.1f} km, {shares} "
            f"({self.n:,} places)"
        )

    def _repr_html_(self) -> str:
        shares = {f"{km:g} km": f"{share:.1%}" for km, share in zip(self.radii_km, self.within, strict=True)}
        cells = {
            "Geoscore": f"<b>{self.geoscore:,.0f}</b>",
            "mean km": f"{self.mean_km:,.1f}",
            "median km": f"{self.median_km:,.1f}",
            **shares,
            "places": f"{self.n:,}",
        }
        head = "".join(f"<th>{name}</th>" for name in cells)
        return f"<table><tr>{head}</tr><tr>{''.join(f'<td>{cell}</td>' for cell in cells.values())}</tr></table>"


def report(km: ArrayLike, radii_km: tuple[float, ...] = RADII_KM) -> Report:
    """The report on distances (N,) in km between guesses and truth; a distance equal to a radius is within it.

    Raises KitError for no distances at all, and for one that is negative, infinite or NaN.

    >>> report([0.5, 30.0, 100.0]).as_dict()["within_25_km"]
    0.3333333333333333
    """
    km = np.asarray(km, float)
    if km.ndim != 1 or len(km) == 0:
        raise KitError(f"distances to report on have shape {km.shape}, wanted is (N,) with N at least 1")
    bad = ~((km >= 0) & (km < np.inf))  # NaN fails both
    if bad.any():
        first = int(np.argmax(bad))
        raise KitError(
            f"{int(bad.sum())} of {len(km)} distances are none, first at row {first}: {km[first]:g} km; "
            "allowed are finite ones from 0"
        )
    return Report(
        n=len(km),
        mean_km=float(km.mean()),
        median_km=float(np.median(km)),
        geoscore=float(geoscore(km).mean()),
        radii_km=tuple(float(radius) for radius in radii_km),
        within=tuple(float((km <= radius).mean()) for radius in radii_km),
    )
