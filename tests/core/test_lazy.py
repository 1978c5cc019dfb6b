"""lazy: the faces of packages, and the list of packages that a wheel carries."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kitlib
from kitlib import data, geo
from kitlib.core import lazy, paths
from kitlib.geo import geohash, sphere

FACE = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from kitlib.geo import geohash as geohash
    from kitlib.geo.sphere import distance_km as km
    from kitlib.geo.sphere import no_such_function as broken
"""


@pytest.fixture
def get(tmp_path, monkeypatch):
    monkeypatch.setattr(geo, "__all__", geo.__all__)  # restored at the end
    file = tmp_path / "__init__.py"
    file.write_text(FACE)
    return lazy.face("kitlib.geo", str(file))[0]


def test_a_face_gives_modules_and_definitions_under_the_offered_names(get, monkeypatch):
    monkeypatch.setitem(vars(geo), "km", None)  # removed again at the end
    assert get("geohash") is geohash and get("km") is sphere.distance_km
    assert geo.km is sphere.distance_km  # from now on without the face


def test_unknown_names_are_refused_and_broken_ones_do_not_go_unnoticed(get):
    with pytest.raises(AttributeError, match=r"'kitlib.geo' has no attribute 'miles'; it offers geohash, km, broken"):
        get("miles")
    with pytest.raises(AttributeError, match="no_such_function"):
        get("broken")
    assert not hasattr(geo, "miles") and {"geohash", "distance_km"} <= set(dir(geo))


def packages() -> list[str]:
    folders = sorted(file.parent for file in paths.package_dir().rglob("__init__.py"))
    return [".".join(folder.relative_to(paths.checkout()).parts) for folder in folders]


@pytest.mark.parametrize("package", packages())
def test_every_name_that_a_package_offers_can_be_imported(package):
    pytest.importorskip("torch")
    module = importlib.import_module(package)
    if "lazy.face" in Path(str(module.__file__)).read_text():
        assert all(getattr(module, name) is not None for name in dir(module))


def test_importing_a_package_imports_none_of_its_modules():
    program = "import sys, kitlib.geo, kitlib.data; print(*(name for name in sys.modules if name[:6] == 'kitlib'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lowest = {"kitlib", "kitlib.core", "kitlib.core.errors", "kitlib.core.lazy", "kitlib.core.threads"}
    assert set(done.stdout.split()) == lowest | {"kitlib.geo", "kitlib.data"}


def test_a_wheel_carries_every_package():
    project = tomllib.loads((Path(kitlib.__file__).parents[1] / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(set(listed) - {"kitlib.notebooks"}) == packages()


@pytest.mark.parametrize("jedi", [False, True])
def test_tab_shows_what_is_meant(jedi):
    """The real completer of a notebook, with and without jedi."""
    program = f"""
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("import kitlib.geo.sphere\\nfrom kitlib import data, geo\\nfrom kitlib.geo import sphere, geohash")
shell.Completer.use_jedi = {jedi}
with provisionalcompleter():
    for line in ("data.", "geo.", "sphere.", "geo.geohash."):
        print(*sorted(found.text.strip(".") for found in shell.Completer.completions(line, len(line))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    shown = [{name for name in line.split() if name[0] != "_"} for line in done.stdout.splitlines()]
    assert shown[0] == set(data.__all__) and shown[1] == set(geo.__all__)
    assert shown[2] == set(lazy.public(str(sphere.__file__))) and shown[3] == set(lazy.public(str(geohash.__file__)))
    assert "distance_km" in shown[2] and not {"np", "annotations", "KitError", "Any", "log"} & shown[2]


def test_a_package_is_pickled_by_its_name():
    """By dill, with which `datasets` recognises functions that use one."""
    import dill

    assert dill.loads(dill.dumps(geo, recurse=True)) is geo
