"""The rules that every notebook keeps: short, explained, without outputs, with parameters that papermill can read."""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import subprocess
import sys
import warnings

import pytest

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.core.parameters import RULES, check_parameters
from kitlib.pipeline.notebook import TYPES, read_notebook
from kitlib.pipeline.runner import ORCHESTRATION

NOTEBOOKS = sorted(paths.notebooks_dir().glob("*.ipynb"))
UNREACHED = {f"kitlib.{name.removesuffix('.py').replace('/', '.')}" for name in ORCHESTRATION}

pytestmark = pytest.mark.parametrize("file", NOTEBOOKS, ids=[file.stem for file in NOTEBOOKS])


@pytest.fixture
def nb(file):
    return json.loads(file.read_text())


def source(cell) -> str:
    return "".join(cell["source"])


def code(nb) -> list[str]:
    return [source(cell) for cell in nb["cells"] if cell["cell_type"] == "code"]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_name_title_question_and_what_it_reads_writes_and_takes(file, nb):
    number = re.fullmatch(r"(\d\d)_[a-z0-9_]+", file.stem)
    assert number, "a notebook is called NN_name"
    first = nb["cells"][0]
    assert first["cell_type"] == "markdown" and source(first).startswith(f"# {number.group(1)} · ")
    book = read_notebook(file)
    assert book.title and not book.title[0].isdigit()
    assert book.question.endswith("?")
    for word in ("Reads", "Writes", "Takes"):
        assert f"*{word}*" in source(first)


def test_parameters_cell(file, nb):
    import papermill

    cell = nb["cells"][1]
    assert cell["metadata"]["tags"] == ["parameters"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = papermill.inspect_notebook(str(file))
    ours = read_notebook(file).parameters
    assert {name: (p["inferred_type_name"], ast.literal_eval(p["default"])) for name, p in seen.items()} == {
        name: (p.type, p.default) for name, p in ours.items()
    }
    assert len(ours) == len(lines(source(cell)))
    assert all(name == name.upper() for name in ours)
    assert all(p["help"] for p in seen.values()), "every parameter has a comment"


def test_parameters_have_the_defaults_of_the_config(file, nb):
    """A Config's defaults are for real data: no notebook has others, and values for drawn places are a preset."""
    book = read_notebook(file)
    assert bool(book.settings) == ("MORE" in book.parameters)
    fixed = {"METHOD"} if file.stem == "11_train_retrieval" else set()
    for name in (book.parameters.keys() & book.settings.keys()) - fixed:
        same = (book.parameters[name].type, book.parameters[name].default)
        assert same == (book.settings[name].type, book.settings[name].default) or name == "START_FROM", name


def test_parameters_are_checked_before_anything_else(nb):
    first = code(nb)[1]
    assert first.index("check_parameters(globals()") < first.index("data.load(")


BAD = {
    "int": [-2, math.nan, 10**30, None, "x"],
    "float": [-1.0, math.nan, math.inf, 10**400, None, "x"],
    "bool": ["x", 2, None],
    "str": ["a\0b", None, [1]],
}
BAD_TEXTS = {key: ["../x", "x" * 300, "a b"] for key in ["RUN", "NAME", "START_FROM", "RUNS", "COMPARE", "ALSO"]}
BAD_TEXTS |= {key: ["x", "5", "[]", "{", "9" * 6000, "[" * 1500] for key in ["MORE", "TABLES"]}
BAD_TEXTS |= {"ONLY_FOLDS": ["0;1", "1.5", "99", "x"], "SIZES": ["0", "-5", "x"], "FOLDS_COLUMN": ["", "x"]}


def test_bad_values_of_every_parameter_are_refused_in_a_sentence(file, home):
    book = read_notebook(file)
    given = {name: parameter.default for name, parameter in book.parameters.items()}
    given["__annotations__"] = {name: TYPES[parameter.type] for name, parameter in book.parameters.items()}

    def check(**changed):
        values = given | changed
        check_parameters(values, optional=[name for name in RULES if given.get(name) == ""])
        if book.config:
            book.config.from_parameters(values, values["MORE"])

    check()
    for name, parameter in book.parameters.items():
        for value in BAD[parameter.type] + BAD_TEXTS.get(name, []):
            with pytest.raises(KitError, match=f"^({name}|{name.lower()}): ") as refused:
                check(**{name: value})
            assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 600


def test_a_number_for_a_text_parameter_is_the_text(file, home):
    """Papermill turns `-p RUN 2024` into a number."""
    book = read_notebook(file)
    texts = [name for name, parameter in book.parameters.items() if parameter.type == "str"]
    for name in set(texts) - {"MORE", "TABLES", "FOLDS_COLUMN", "ORDER"}:
        values = {name: 2, "__annotations__": {name: str}}
        check_parameters(values)
        assert values[name] == "2"


def test_short_cells_that_define_nothing_and_print_nothing(nb):
    parameters, *cells = code(nb)
    assert len(cells) <= 19 and len(lines(parameters)) <= 20
    assert sum(len(lines(cell)) for cell in cells) <= 100
    assert max(len(cell.splitlines()) for cell in cells) <= 20
    for cell in cells:
        for node in ast.walk(ast.parse(cell)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda), cell
            assert not (isinstance(node, ast.Name) and node.id == "print"), cell


def test_prose_comes_before_code(nb):
    cells = nb["cells"]
    for before, cell in itertools.pairwise(cells[1:-1]):  # all but the parameters and the headline
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", source(cell)


def test_ends_with_a_headline(nb):
    last = ast.parse(code(nb)[-1]).body[-1]
    assert isinstance(last, ast.Expr) and ast.unparse(last).startswith("headline(")


def test_is_committed_without_outputs_for_any_python_3(file, tmp_path):
    """What git holds counts: a notebook that was run in place stays as it is, see CONTRIBUTING.md."""
    command = ["git", "-C", str(paths.checkout()), "show", f":notebooks/{file.name}"]
    shown = subprocess.run(command, capture_output=True)
    copy = tmp_path / file.name
    copy.write_bytes(shown.stdout if shown.returncode == 0 else file.read_bytes())
    assert subprocess.run([sys.executable, "-m", "nbstripout", "--verify", copy], capture_output=True).returncode == 0
    nb = json.loads(copy.read_text())
    assert all(cell["id"] for cell in nb["cells"])
    assert nb["metadata"]["kernelspec"]["name"] == "python3"
    assert nb["nbformat"] == 4 and nb["nbformat_minor"] >= 5


def test_imports_no_orchestration_and_names_no_machine(file, nb):
    whole = "\n".join(code(nb))
    for node in ast.walk(ast.parse(whole)):
        if isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        else:
            continue
        for name in imported:
            parts = name.split(".")
            assert not {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & UNREACHED
    assert not re.search(r"(/home|/Users|/root|/work|/tmp|/kaggle)/", file.read_text())
