"""The four rules of the house: floors, families apart, no torch where none is needed, families by their faces only."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from kitlib.core import paths

FLOORS = {
    **{"core": 1, "geo": 2, "data": 3, "evaluation": 4, "vision": 4, "training": 5, "figures": 5, "pipeline": 5},
    **{"models": 6, "platforms": 6, "__main__": 7},
}
FAMILIES = ("linear_probe", "multiview", "retrieval", "regional", "ridge", "vlm")
WITHOUT_TORCH = ("core", "geo", "data", "evaluation", "figures", "pipeline", "models/vlm/conversation")
HEAVY = {"torch", "timm", "transformers", "pytorch_lightning"}


def modules() -> list[str]:
    """All modules by their dotted names below kitlib."""
    package = paths.package_dir()
    files = [file.relative_to(package).with_suffix("") for file in sorted(package.rglob("*.py"))]
    return [".".join(file.parts) for file in files if len(file.parts) > 1 or file.stem in FLOORS]


def imports(module: str) -> set[str]:
    """The kit's modules and names that a module imports, inside its functions too, dotted below kitlib."""
    found = set()
    for node in ast.walk(ast.parse((paths.package_dir() / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kitlib":
            found |= {".".join([*str(node.module).split(".")[1:], alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("kitlib.") for alias in node.names if alias.name.startswith("kitlib.")}
    return found


def family(module: str) -> str:
    """The family that a module is of, "" for any other."""
    parts = module.split(".")
    return parts[1] if parts[0] == "models" and len(parts) > 1 and parts[1] in FAMILIES else ""


@pytest.mark.parametrize("module", modules())
def test_a_package_imports_only_from_floors_below_its_own(module):
    own = module.split(".")[0]
    reached = {other for other in imports(module) if (package := other.split(".")[0]) in FLOORS and package != own}
    upward = {other for other in reached if FLOORS[other.split(".")[0]] >= FLOORS[own]}
    assert not upward, f"{module} is on floor {FLOORS[own]} and imports {sorted(upward)}"


@pytest.mark.parametrize("module", [module for module in modules() if family(module)])
def test_a_family_imports_nothing_of_another_family(module):
    others = {other for other in imports(module) if family(other) not in ("", family(module))}
    assert not others


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_some_packages_work_without_torch(package):
    within = [name for name in modules() if name.startswith(package.replace("/", ".") + ".")]
    names = [f"kitlib.{name.removesuffix('.__init__')}" for name in within]
    program = "import sys, importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    program += f"print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", [module for module in modules() if not module.startswith("models.")])
def test_from_outside_a_family_only_its_face_is_imported(module):
    inner = {other for other in imports(module) if family(other) and other.count(".") > 2}
    assert not {other for other in inner if other.split(".")[2] not in ("figures", "analysis")}


def test_plotting_and_learning_libraries_are_not_imported_by_the_tables():
    program = "import sys\nimport kitlib.data.readers, kitlib.data.folds\n"
    program += "import kitlib.evaluation.runs, kitlib.evaluation.submission\n"
    unwanted = "{'matplotlib', 'sklearn', 'seaborn', 'folium', 'datasets', 'shapely'}"
    program += f"print(*sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
