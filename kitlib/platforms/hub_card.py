"""The model card of runs on the Hugging Face hub: the README.md of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.evaluation import baselines, origin, runs
from kitlib.evaluation.runs import Run
from kitlib.vision.licences import Licence, licence_of

LISTED = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "unknown")  # of the hub's own list
TASK = "image-classification"
METRICS = {
    "final": "competition score, out of fold",
    "top1": "state accuracy, out of fold",
    "mean_km": "mean error in km, out of fold",
}
ORDER = (False, None, True)  # the strictest licence first


CARD = """---
{yaml}
---

# {name}

Where on the globe was a street-level photograph taken? The runs here answer with states and a point.

{table}

Scores are of held-out training places (0 to 1, more is better), with the half-width of their 95 % interval.
{references}

## Use

```
kitlib locate hf:{repo} PHOTOS     # a table and a page with maps
kitlib predict hf:{repo} DATA      # the same for the test places of a data set, with a submission
kitlib hub pull {repo}             # the runs only
```

{several}
All files are plain (JSON, .npz, .safetensors): nothing is unpickled. `checksums.json` of each run lists them.

## Training data

{trained}

## Licence

{licences}

A trained model inherits the licence of the weights it started from{inherits}
The terms of the training data hold as well.
"""


def licence(settings: dict[str, Any]) -> Licence:
    """The licence that a run inherits from the weights that it started from."""
    return licence_of(str(settings.get("encoder") or settings.get("model") or "tiny"))


def card(repo: str, described: dict[str, dict[str, Any]], references: dict[str, str]) -> str:
    """The model card of runs: a description by `describe` for each, and lines of `references`."""
    from huggingface_hub import EvalResult, ModelCardData

    licences = {name: licence(run["settings"]) for name, run in described.items()}
    strictest = min(licences.values(), key=lambda each: ORDER.index(each.commercial))
    bases = {str(run["settings"].get("encoder") or run["settings"].get("model") or "") for run in described.values()}
    published = sorted({base[3:] for base in bases if base.startswith("hf:") and base.count("/") == 1})
    results = [
        EvalResult(
            "image-classification", run["data"], run["data"], key, run["oof"][key], metric_name=f"{name}: {what}"
        )
        for name, run in described.items()
        for key, what in METRICS.items()
        if key in run["oof"]
    ]
    standard = strictest.name in LISTED
    data = ModelCardData(
        license=strictest.name if standard else "other",
        license_name=None if standard else strictest.name,
        base_model=published or None,
        datasets=sorted({run["data"] for run in described.values()}),
        metrics=["accuracy"],
        tags=["geolocation", "street-view", "kitlib"],
        library_name="kitlib",
        pipeline_tag=TASK,
        model_name=repo.partition("/")[2],
        eval_results=results or None,
    )
    table = ["| run | family | encoder or model | score | state accuracy | mean km | folds |", "|" + "---|" * 7]
    table += [_row(name, run) for name, run in described.items()]
    sentences = sorted({each.sentence for each in licences.values()})
    several = f"Several runs answer as one, with equal weights; `hf:{repo}/RUN` asks one of them."
    return CARD.format(
        yaml=data.to_yaml(),
        name=repo.partition("/")[2],
        repo=repo,
        table="\n".join(table),
        references="".join(f"\n{what}: {text}." for what, text in references.items()),
        several=several if len(described) > 1 else "A run's folds answer as one.",
        trained="\n".join(f"- {name}: {_trained_on(run)}" for name, run in described.items()),
        licences="\n".join(f"- {sentence}." for sentence in sentences),
        inherits=": **no commercial use**." if strictest.commercial is False else ".",
    )


def describe(params: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """What a card says of a run, from its params.json and metrics.json."""
    settings = params["settings"]
    return {
        "settings": settings,
        "data": paths.data_name(Path(str(settings.get("data", "unknown")))),
        "oof": metrics.get("oof", {}),
        "half_width": metrics.get("half_width"),
        "folds": len(metrics.get("folds", {})),
        "checksum": params["data"].get("places", "unknown"),
        "states": len((params.get("learned") or {}).get("states", ())),
    }


def references(run: Run) -> dict[str, str]:
    """Chance and a baseline on the places of a run, as far as this machine has them."""
    found = {}
    for name in runs.finished_on(run.params["data"].get("places", "")):
        other = runs.open_run(name)
        if other.settings.get("family") == "logistic" and name != run.name and "oof" in other.metrics:
            found["Baseline, logistic regression on frozen features"] = f"{other.metrics['oof']['final']:.4f}"
    try:
        places = origin.reload_places(run)
        if places.checksum == run.params["data"].get("places"):
            found["Chance, states in random order and shuffled points"] = (
                f"{baselines.chance(places, run.guesses('oof').sample_id).final:.4f}"
            )
    except (KitError, KeyError):
        found["Chance"] = "not computed, as the training data was not at hand when this was pushed"
    return found


def _row(name: str, run: dict[str, Any]) -> str:
    oof, half = run["oof"], run["half_width"]
    score = f"{oof['final']:.4f}" + (f" ± {half:.4f}" if half is not None else "") if "final" in oof else "-"
    accuracy = f"{oof['top1']:.3f}" if "top1" in oof else "-"
    km = f"{oof['mean_km']:,.0f}" if "mean_km" in oof else "-"
    settings = run["settings"]
    model = str(settings.get("encoder") or settings.get("model") or "-").partition("@")[0]
    folds = f"{run['folds'] or 1} of {settings.get('n_folds', 1)}"
    return f"| {name} | {settings.get('family', '-')} | `{model}` | {score} | {accuracy} | {km} | {folds} |"


def _trained_on(run: dict[str, Any]) -> str:
    states = f" of {run['states']} labels" if run["states"] else ""
    seed = f", seed {run['settings']['seed']}" if "seed" in run["settings"] else ""
    return f"places{states} of the data set `{run['data']}` (checksum {run['checksum']}){seed}"
