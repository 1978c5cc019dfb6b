"""pyproject.toml, requirements.lock, environment.yml and the Makefile agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions

import pytest
import yaml
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement

from kitlib.core import paths

CHECKOUT = paths.checkout()
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
LOCK = (CHECKOUT / "requirements.lock").read_text().splitlines()
MAKEFILE = (CHECKOUT / "Makefile").read_text()
NAMED = """torch torchvision timm transformers pytorch-lightning numpy pandas scikit-learn scipy matplotlib seaborn
    folium shapely jupyterlab jupyter ipywidgets papermill nbconvert pydantic pyyaml typer tqdm pyarrow peft datasets
    huggingface-hub safetensors simplejpeg pillow"""


COME_WITH = {"tokenizers", "accelerate"}  # transformers' and trl's own


def name_of(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


LOCKED = [Requirement(line) for line in LOCK]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]


def test_the_lock_has_names_versions_and_markers_only():
    line = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!]+( ; [^@#:]+)?")
    assert [text for text in LOCK if not line.fullmatch(text)] == []


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_meets_every_requirement_on_each_system(system, python):
    where = {**default_environment(), "sys_platform": system, "python_version": python}
    where |= {"python_full_version": f"{python}.1", "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system]}
    locked: dict[str, list[str]] = {}
    for requirement in LOCKED:
        if requirement.marker is None or Marker(str(requirement.marker)).evaluate(where):
            locked.setdefault(name_of(requirement), []).append(str(requirement.specifier).removeprefix("=="))
    twice = {name: versions for name, versions in locked.items() if len(versions) > 1}
    assert not twice
    for requirement in REQUIRED:
        [version] = locked.get(name_of(requirement), [""])
        assert version and requirement.specifier.contains(version), f"{requirement}: the lock has {version or 'none'}"


def test_the_image_of_vllm_meets_every_requirement_and_what_trl_asks_of_vllm():
    locked = [Requirement(line) for line in (CHECKOUT / "images/vllm.lock").read_text().splitlines()]
    versions = {name_of(one): str(one.specifier).removeprefix("==") for one in locked}
    extras = PROJECT["optional-dependencies"]
    asked = [Requirement(line) for line in PROJECT["dependencies"] + extras["rl"] + extras["four_bit"] + extras["vllm"]]
    asked += [Requirement(text) for text in distribution("trl").requires or [] if text.startswith("vllm")]
    for requirement in asked:
        version = versions.get(name_of(requirement), "")
        assert requirement.specifier.contains(version), f"{requirement}: the lock has {version or 'none'}"
    dockerfile = (CHECKOUT / "images/vllm.Dockerfile").read_text()
    assert f"uv=={re.search(r'^UV := (.+)$', MAKEFILE, re.MULTILINE)[1]} " in dockerfile


def test_the_named_packages_are_required_with_a_lower_bound():
    required = {name_of(requirement): requirement for requirement in REQUIRED}
    assert set(NAMED.split()) <= required.keys()
    unbounded = [name for name, r in required.items() if not any(s.operator in (">=", "==") for s in r.specifier)]
    assert unbounded == []


def test_every_package_that_is_imported_is_declared():
    """What comes only with another package may go with it."""
    extras = {Requirement(line).name for lines in PROJECT["optional-dependencies"].values() for line in lines}
    declared = {name_of(requirement) for requirement in REQUIRED} | {re.sub(r"[-_.]+", "-", name) for name in extras}
    installed = packages_distributions()
    for file in paths.package_dir().rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in {full.partition(".")[0] for full in names} - sys.stdlib_module_names - {"kitlib", "cycler"}:
                made_by = {re.sub(r"[-_.]+", "-", one).lower() for one in installed.get(name, [name])}
                assert made_by & (declared | COME_WITH), f"{file.name} imports {name}, which no requirement names"


def test_the_releases_of_lightning_that_were_malware_are_excluded():
    [lightning] = [requirement for requirement in REQUIRED if name_of(requirement) == "pytorch-lightning"]
    assert not lightning.specifier.contains("2.6.2") and not lightning.specifier.contains("2.6.3")


def test_the_conda_environment_is_every_requirement_with_its_reason_at_the_locked_version():
    text = (CHECKOUT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    [python] = [line.partition("=")[2] for line in conda if line.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    assert "pip" in conda
    constraint, *named, kit = pip["pip"]
    assert (constraint, kit) == ("-c requirements.lock", "-e .")
    assert sorted(name_of(Requirement(line)) for line in named) == sorted(
        name_of(Requirement(line)) for line in PROJECT["dependencies"]
    )
    listed = [line for line in text.splitlines() if line.lstrip().startswith("- ")]
    unexplained = [line for line in listed[1:] if "  # " not in line and "pip:" not in line]
    assert unexplained == [], "every line says who needs it"


def test_the_makefile_installs_the_lock_and_lets_in_the_pythons_of_pyproject():
    assert "-r requirements.lock" in MAKEFILE and "$(VENV)/.installed: requirements.lock pyproject.toml" in MAKEFILE
    low, high = re.search(r"\((3, \d+)\) <= sys.version_info\[:2\] < \((3, \d+)\)", MAKEFILE).groups()
    assert PROJECT["requires-python"] == f">={low.replace(', ', '.')},<{high.replace(', ', '.')}"
    for target in ("help", "pipeline", "test", "lab", "bench", "lock"):
        assert re.search(rf"^{target}:.*##", MAKEFILE, re.MULTILINE)


def test_ci_calls_the_command_of_the_readme():
    script = (CHECKOUT / ".ci/run").read_text()
    command = script.strip().splitlines()[-1]
    assert command == "make test" and "set -euo pipefail" in script
    assert (CHECKOUT / ".ci/run").stat().st_mode & 0o111
    readme = CHECKOUT / "README.md"
    if not readme.exists():
        pytest.skip("no README yet")
    assert command in readme.read_text()
