"""Arrows point down only, no family knows another, and everything below layer 2 works without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from kitlib import paths

LAYERS = [
    ("0 maths and paths", "paths geo projection settings"),
    ("0 files and outlines", "files outlines"),
    ("1a tables", "tables streaming places guesses runs submissions competition accuracy"),
    (
        "1b numbers",
        "inspection pictures folds baselines ensemble geocells crossfit scalers regions gallery pairing affinity "
        "within",
    ),
    ("1b cleaning and voting", "clusters outliers vote"),
    ("1b answers", "labels coordinates answers geohash prompts rewards environments curriculum fallback rollouts"),
    ("1c pictures and figures", "figures atlas maps panels affinity_figures results rollout_figures"),
    ("1c drawn worlds", "stamps strip scenery sample toy"),
    ("2a torch", "views losses batches checkpoints tracking location"),
    ("2b encoders", "tiny backbones encoders embeddings lora weights"),
    ("2b networks", "keeper fitting heads learner geolocator inputs neighbours"),
    ("2c region-wise", "regressors regression regionwise"),
    ("2c matching", "gpsqueue gpsnet gpsmatch"),
    ("2c metric learning", "mining metric"),
    ("2c retrieval", "embedders lookup learned"),
    (
        "2c vision-language",
        "tiny_vlm vlm_models vlm_tasks vlm_data vlm_talk vlm_sampler vlm_said vlm_guess vlm_settings vlm_record",
    ),
    ("2c its training", "vlm_fit vlm_grpo vlm_trainers vlm_session"),
    ("2c its remote training", "remote_envs remote vlm_remote"),
    ("3 families", "frozen multiview regional retrieval vlm"),
    ("3 what a family's run shows", "live retrieved conversed"),
    ("4a one notebook", "notebooks plans kernels report watch doctor"),
    ("4b plans", "pipeline"),
    ("4c command line", "__main__"),
]
LEVEL = {module: level for level, (_, modules) in enumerate(LAYERS) for module in modules.split()}
FAMILIES = {"frozen", "multiview", "retrieval", "regional", "vlm"}
HEAVY = {"torch", "timm", "transformers", "pytorch_lightning"}


def modules() -> list[str]:
    return sorted(file.stem for file in paths.assets_dir().parent.glob("*.py") if file.stem != "__init__")


def imports(module: str) -> set[str]:
    """The kit's modules that a module imports, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse((paths.assets_dir().parent / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "kitlib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kitlib."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kitlib.")}
    return found & set(modules())


def test_every_module_has_its_layer():
    missing = set(modules()) - set(LEVEL)
    assert not missing, f"say in LAYERS where {sorted(missing)} belong"


@pytest.mark.parametrize("module", modules())
def test_arrows_point_down(module):
    upward = {other for other in imports(module) if LEVEL[other] > LEVEL[module]}
    assert not upward, f"{module} imports {sorted(upward)} from a layer above it"


def test_no_circles():
    list(TopologicalSorter({module: imports(module) for module in modules()}).static_order())


def test_a_family_never_imports_a_family():
    for module in FAMILIES & set(modules()):
        reached, todo = set(), imports(module)
        while todo:
            reached |= todo
            todo = {further for other in todo for further in imports(other)} - reached
        assert not reached & FAMILIES - {module}, f"{module} reaches another family"


def test_layers_0_and_1_and_the_plans_need_no_torch():
    below = [module for level, (name, row) in enumerate(LAYERS) for module in row.split() if name[0] in "01"]
    wanted = [*below, "notebooks", "plans", "pipeline", "report", "kernels"]
    program = "import sys\n" + "".join(f"import kitlib.{module}\n" for module in wanted)
    program += f"print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_plotting_and_learning_libraries_are_not_imported_by_the_tables():
    program = "import sys\nimport kitlib.places, kitlib.runs, kitlib.competition, kitlib.folds\n"
    program += (
        "print(*sorted({'matplotlib', 'sklearn', 'seaborn', 'folium', 'datasets', 'shapely'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
