"""The wheels that a notebook on Kaggle needs: the kit's own, and those that Kaggle's image lacks."""

from __future__ import annotations

import csv
import functools
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

from kitlib.core import paths
from kitlib.core.errors import KitError

PYTHON = "3.12"  # of Kaggle's image; its glibc is 2.35
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# The newest ones need another hub client and half of the image's packages anew.
OLDER = "datasets<5.1\ntransformers<5.18\n"
AT_HOME = {"jupyter", "jupyterlab"}  # Kaggle's site is the editor
SOURCE = ("kitlib", "notebooks", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@functools.cache
def image() -> dict[str, str]:
    """The version of each package in Kaggle's image of August 2026, by its name in lower case with hyphens."""
    with (Path(__file__).parent / "image.csv").open() as file:
        return {_plain(row["package"]): row["version"] for row in csv.DictReader(file)}


def pins() -> list[str]:
    """The requirements of the kit that the image satisfies, each in the image's version, for `make kaggle-image`."""
    lacking = {_plain(requirement.name) for requirement in missing(requirements())} | AT_HOME
    names = [_plain(Requirement(line).name) for line in requirements()]
    return [f"{name}=={image()[name]}" for name in [*names, "pip", "kaggle"] if name not in lacking]


def missing(requirements: Iterable[str]) -> list[Requirement]:
    """The requirements that Kaggle's image does not satisfy."""
    needed = []
    for requirement in map(Requirement, requirements):
        name, marker = _plain(requirement.name), requirement.marker
        there = marker and not marker.evaluate({"python_version": PYTHON, "sys_platform": "linux", "extra": ""})
        if not there and name not in AT_HOME and image().get(name, "") not in _Versions(requirement):
            needed.append(requirement)
    return needed


class _Versions:
    """The versions that a requirement allows; the absent one, "", is never among them."""

    def __init__(self, requirement: Requirement) -> None:
        self.allowed = requirement.specifier

    def __contains__(self, version: str) -> bool:
        return bool(version) and self.allowed.contains(version, prereleases=True)


def requirements(extras: Iterable[str] = ()) -> list[str]:
    """The kit's requirements with those of some extras, as pyproject.toml lists them."""
    project = tomllib.loads((_checkout() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


def build(folder: Path) -> Path:
    """Build the kit's wheel from this checkout into `folder`. Raises KitError if it cannot be built."""
    checkout = _checkout()
    with tempfile.TemporaryDirectory() as copy:  # building leaves files beside the source
        for name in SOURCE:
            if (checkout / name).is_dir():
                shutil.copytree(checkout / name, Path(copy, name), ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy2(checkout / name, copy)
        program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
        command = [sys.executable, "-c", program, str(folder.resolve())]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise KitError(
            f"kaggle pack: the kit's wheel could not be built ({reason[:150]}): pip install 'setuptools>=77'"
        )
    return next(folder.glob("kitlib-*.whl"))


def download(extras: Iterable[str], folder: Path) -> list[Path]:
    """Download the wheels that the image lacks, and what these need in turn, into `folder`.

    Raises KitError if one cannot be had, such as without the internet.
    """
    todo, done = missing(requirements(extras)), dict[str, Path]()
    lock = (_checkout() / "requirements.lock").read_text(encoding="utf-8")
    tested = re.sub("(?m)^(datasets|transformers)==.*$", "", lock) + OLDER
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    while todo:
        requirement = todo.pop()
        if (name := _plain(requirement.name)) in done:
            continue
        with tempfile.TemporaryDirectory() as new:
            wanted = f"{requirement.name}{requirement.specifier}"
            options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
            Path(new, "tested.txt").write_text(tested, encoding="utf-8")
            _pip("download", *options, *platforms, "-c", f"{new}/tested.txt", "--dest", new, wanted)
            wheel = next(Path(new).glob("*.whl"))
            done[name] = Path(shutil.move(wheel, folder / wheel.name))
        todo += missing(metadata(done[name]).get_all("Requires-Dist") or [])
    return sorted(done.values())


def metadata(wheel: Path) -> Message:
    """The fields of a wheel's METADATA, such as License-Expression."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return HeaderParser().parsestr(archive.read(name).decode())


def licence(wheel: Path) -> str:
    """The licence that a wheel states, in a few words."""
    fields = metadata(wheel)
    return str(fields["License-Expression"] or fields["License"] or "see its files").partition("\n")[0][:60]


def _checkout() -> Path:
    if not paths.is_checkout():
        raise KitError("kaggle pack: expected the kit's checkout, from which its wheel is built; got an installed kit")
    return paths.checkout()


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"code {done.returncode}"
        raise KitError(
            f"kaggle pack: the wheel of {arguments[-1]} could not be had ({reason[:150]}); packing needs the internet "
            "once, or the wheels in a folder that --wheels names"
        )


def _plain(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
