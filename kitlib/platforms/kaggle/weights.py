"""The weights that a plan's notebooks need on Kaggle: which, from where, and under which licence they are attached."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitlib.core import paths, storage
from kitlib.core.errors import KitError, one_line
from kitlib.core.settings import mapping
from kitlib.pipeline.plans import Ready
from kitlib.vision.licences import Licence, licence

STREETCLIP = "hf:geolocal/StreetCLIP"  # what an empty ENCODER means for data that is not drawn
NEEDED = ("*.json", "*.safetensors", "*.pth", "*.txt", "*.jinja", "*.model")
ON_KAGGLE = r"[\w-]+/[\w-]+/[\w-]+/[\w-]+/\d+"  # owner/model/framework/variation/version
FRAMEWORK, VARIATION = "transformers", "default"


@dataclass(frozen=True)
class Attached:
    """Weights that are attached to the notebooks: a folder to push, or what is on Kaggle already (folder is None)."""

    source: str  # OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, or OWNER/SLUG of a dataset
    folder: Path | None = None
    licence: str = ""  # with its limits

    @property
    def is_model(self) -> bool:
        """Whether it is a Kaggle Model; weights whose licence Kaggle does not list for models are a dataset."""
        return self.source.count("/") == 4


def needed(steps: Iterable[Ready], drawn: str = "sample") -> list[str]:
    """The encoders and models of a plan's steps that have published weights, such as hf:geolocal/StreetCLIP."""
    names: list[str] = []
    for step in steps:
        values = {name: parameter.default for name, parameter in step.notebook.parameters.items()} | step.values
        more = mapping(str(values.get("MORE", "{}")))
        for name in {"ENCODER", "MODEL"} & values.keys():
            preset = values.get("DATA") == drawn and name not in step.values and name.lower() not in more
            chosen = str(more.get(name.lower(), values[name]))
            if not preset:
                chosen = chosen or ("tiny" if values.get("DATA") == drawn else STREETCLIP)
                names += [each.removesuffix(paths.STAGES) for each in paths.joined(chosen)]
    return [name for name in dict.fromkeys(names) if name.startswith(("hf:", "timm:"))]


def portable(name: str) -> str:
    """An encoder or model as the notebooks on Kaggle name it: a file or folder of this machine by its bare name."""
    if len(several := paths.joined(name)) > 1:
        return "+".join(portable(each) for each in several)
    plain = name.removesuffix(paths.STAGES)
    before, path = paths.split(plain)
    return (before + Path(path).name if _local(path) else plain) + name[len(plain) :]


def attach(name: str, owner: str, given: Mapping[str, str], licence_name: str, folder: Path) -> Attached:
    """Collect the weights `name` in `folder` with their metadata, or take what `given` says is on Kaggle already.

    given: a folder, or OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, by name. licence_name: of weights whose licence the kit
    does not know. Raises KitError for weights that are not to be had, and without a licence.
    """
    if re.fullmatch(ON_KAGGLE, place := given.get(name, "")):
        return Attached(place)
    terms = licence(name) or (Licence(licence_name, licence_name) if licence_name else None)
    if terms is None:
        raise KitError(f"{name}: its licence is not known here: say it by --licence, such as 'Apache 2.0'")
    files = _files(name, place)
    called = paths.slug(_called(name))
    folder = folder / called
    folder.mkdir(parents=True)
    for file in files:
        _take(file, folder / ("model.safetensors" if len(files) == 1 and file.suffix == ".safetensors" else file.name))
    stated = terms.name + (f", {terms.limits}" if terms.limits else "")
    about = f"Weights of {name} for kitlib. Licence: {stated}."
    if not terms.kaggle:
        about_dataset: dict[str, Any] = {
            "id": f"{owner}/{called}",
            "title": called[:50],
            "licenses": [{"name": "other"}],
        }
        storage.write_json(folder / "dataset-metadata.json", about_dataset | {"description": about})
        return Attached(f"{owner}/{called}", folder, stated)
    model: dict[str, Any] = {
        "ownerSlug": owner,
        "slug": called,
        "title": called,
        "isPrivate": True,
        "description": about,
    }
    storage.write_json(
        folder / "model-metadata.json", model | {"subtitle": "", "publishTime": "", "provenanceSources": name}
    )
    variation: dict[str, Any] = {
        "ownerSlug": owner,
        "modelSlug": called,
        "instanceSlug": VARIATION,
        "framework": FRAMEWORK,
    }
    variation |= {"licenseName": terms.kaggle, "overview": about, "usage": "", "fineTunable": True, "trainingData": []}
    url = f"https://huggingface.co/{name.removeprefix('hf:')}" if name.startswith("hf:") else ""
    variation |= {"modelInstanceType": "Unspecified", "baseModelInstance": "", "externalBaseModelUrl": url}
    storage.write_json(folder / "model-instance-metadata.json", variation)
    return Attached(f"{owner}/{called}/{FRAMEWORK}/{VARIATION}/1", folder, stated)


def _called(name: str) -> str:
    """The name by which `paths.attached_weights` finds weights: the last part, without options and ending."""
    path = paths.split(name)[1]
    return re.sub(r"\.(safetensors|pth)$", "", path.partition("?")[0].rstrip("/").rpartition("/")[2])


def _local(path: str) -> bool:
    return any((root / Path(path).expanduser()).exists() for root in (Path(), paths.home()))


def _files(name: str, place: str) -> list[Path]:
    """The files of weights: in the folder or file `place`, named by `name` itself, or from the Hugging Face hub."""
    path = place or paths.split(name)[1]
    for found in (root / Path(path).expanduser() for root in (Path(), paths.home())):
        if found.is_file():
            return [found]
        if found.is_dir():
            return _weights_in(name, found)
    if place:
        raise KitError(f"--weights {name}: expected a folder, a file, or a version of a model on Kaggle; got {place!r}")
    return _weights_in(name, _from_hub(name))


def _weights_in(name: str, folder: Path) -> list[Path]:
    files = sorted({file for pattern in NEEDED for file in folder.glob(pattern) if file.is_file()})
    files = [file for file in files if not file.name.endswith(("metadata.json", ".index.json.lock"))]
    if not any(file.suffix in (".safetensors", ".pth") for file in files):
        raise KitError(f"{name}: expected a folder with .safetensors or .pth; {folder.name} has none")
    return files


def _from_hub(name: str) -> Path:
    """The folder of weights in the Hugging Face cache, downloaded first if need be."""
    repository = name.removeprefix("hf:")
    if name.startswith("timm:"):
        import timm

        settings = timm.models.get_pretrained_cfg(name.removeprefix("timm:").partition("?")[0])
        repository = str(settings and settings.hf_hub_id)
    from huggingface_hub import snapshot_download

    for offline in (True, False):
        try:
            return Path(snapshot_download(repository, allow_patterns=list(NEEDED), local_files_only=offline))
        except Exception as error:  # no network, no such repository, no access: each library version has its own
            reason = one_line(error)
    raise KitError(
        f"{name}: its weights are not here and could not be downloaded ({reason}); give them by --weights {name}=FOLDER"
    )


def _take(file: Path, target: Path) -> None:
    """Put a file into the pack without a second copy on the disk where the system allows that."""
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(file, target)
