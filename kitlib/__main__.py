"""The command line: `python -m kitlib --help`.

Each command imports its modules when it runs, so that help and errors appear at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from kitlib.core import checks, paths, processes
from kitlib.core.cli import pairs, stoppable
from kitlib.core.errors import KitError, sentence, shown
from kitlib.core.parameters import check_machine
from kitlib.platforms import commands, submission_commands
from kitlib.platforms.hub_commands import app as hub
from kitlib.platforms.kaggle.command import app as kaggle

if TYPE_CHECKING:
    from kitlib.evaluation.runs import Run

app = typer.Typer(
    help="Which US state, and where on the globe? Plans, scores and checks from the command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes a third of a second to import
)

app.add_typer(hub, name="hub")
app.add_typer(kaggle, name="kaggle")

FILES = typer.Option(
    "--parameter", "-p", metavar="NAME=VALUE", help="Where a file of the run is now: -p encoder=timm:NAME@FILE."
)
TABLES = ("train_csv", "test_csv", "train_images", "test_images", "region_column")  # of a region table
SETTINGS = typer.Option(
    "--parameter", "-p", metavar="NAME=VALUE",
    help="Set what `kitlib settings FAMILY` lists, or a file of a region table: train_csv, test_csv, train_images, …",
)  # fmt: skip
PARAMETERS = typer.Option(
    "--parameter", "-p", metavar="[STEP.]NAME=VALUE",
    help="Set a parameter of all steps, or of those with STEP in their name; RUN=x makes runs x-multiview, …",
)  # fmt: skip


@app.callback()
def machine() -> None:
    """Refuse environment variables that the kit cannot use."""
    check_machine()


@app.command()
def run(
    plan: Annotated[str, typer.Argument(help="A plan's name, as `plans` lists them, or the path of a YAML file.")],
    parameter: Annotated[list[str] | None, PARAMETERS] = None,
    force: Annotated[bool, typer.Option("--force", help="Run every step, unchanged or not.")] = False,
    start_from: Annotated[str | None, typer.Option("--from", help="Run this step and all after it.")] = None,
) -> None:
    """Run a plan's notebooks in order; skip unchanged ones."""
    from kitlib.pipeline import runner

    with stoppable():
        try:
            report = runner.run_plan(plan, pairs(parameter), force=force, start_from=start_from)
        except runner.StepFailed as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
    typer.echo(report)


@app.command()
def plans() -> None:
    """List the plans."""
    from kitlib.pipeline.plans import list_plans

    for name, description in list_plans().items():
        typer.echo(f"{name:<10} {description}")


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to; must be empty or new.")],
    places: Annotated[int, typer.Option(help="Training places.", min=1)] = 1000,
    test: Annotated[int, typer.Option(help="Test places.", min=1)] = 250,
    size: Annotated[int, typer.Option(help="Width and height of a picture, in pixels.", min=32)] = 256,
    seed: Annotated[int, typer.Option(help="Another seed, another world.", min=0, max=checks.LARGEST)] = 0,
) -> None:
    """Draw a sample competition in the real file format."""
    from kitlib.data.sample import competition as world

    try:
        typer.echo(world.draw(folder, n_train=places, n_test=test, size=size, seed=seed))
    except FileNotFoundError as error:  # of a folder below /proc, for example
        raise KitError(f"{folder}: expected a folder that can be made; got {error.strerror}") from error


@app.command()
def train(
    run: Annotated[str, typer.Argument(help="The run's name; with several seeds RUN-seed0, RUN-seed1 and so on.")],
    data: Annotated[str, typer.Option(help="A folder, a .zip, or a name under data/raw.")] = "sample",
    seeds: Annotated[str, typer.Option(help="One run a seed, such as 0,1,2.")] = "0",
    folds: Annotated[str, typer.Option(help="Folds to train, such as 0,1; all when left out.")] = "",
    folds_column: Annotated[str, typer.Option(help="stratified, spatial; regional also: given.")] = "stratified",
    n_folds: Annotated[int, typer.Option(help="Into how many folds the training places fall.", min=2, max=1000)] = 5,
    parameter: Annotated[list[str] | None, SETTINGS] = None,
    devices: Annotated[int, typer.Option(help="GPUs, or processes on a CPU.", min=1)] = 1,
    max_hours: Annotated[float | None, typer.Option(help="Of all runs together; stops in time, saved.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Start over, deleting the old runs of that name.")] = False,
    start_only: Annotated[bool, typer.Option("--start-only", help="Train nothing yet: for train-fold.")] = False,
    family: Annotated[str, typer.Option(help="multiview, retrieval, regional, ridge or vlm.")] = "multiview",
    regions: Annotated[str, typer.Option(help="Of regional: whose encoders to train here, commas between.")] = "",
) -> None:
    """Train a family without a notebook; resume an interrupted run."""
    from kitlib.data import readers

    began, given = time.monotonic(), pairs(parameter)
    numbers = checks.whole_numbers("--seeds", seeds)
    if not numbers:
        raise KitError("--seeds: expected at least one number; got none")
    for seed in numbers:
        paths.file_name(run if len(numbers) == 1 else f"{run}-seed{seed}", "run name")
    checks.whole_numbers("--folds", folds)
    checks.one_of("--folds-column", folds_column, ("stratified", "spatial", "given"))
    if max_hours is not None:
        checks.number("--max-hours", max_hours, 0, kind=float, above=True)
    module = family_module(family)
    tables = {name: given.pop(key) for key in list(given) if (name := key.lower()) in TABLES}
    settings = module.Config.typed(given)
    places = readers.load(beside(data, tables), **tables)
    config = module.Config.from_dict(settings, places.preset)
    for seed in numbers:
        hours = None if max_hours is None else max_hours - (time.monotonic() - began) / 3600
        with stoppable():
            trained = module.train(
                dataclasses.replace(config, seed=seed),
                places,
                run if len(numbers) == 1 else f"{run}-seed{seed}",
                folds_column=folds_column,
                n_folds=n_folds,
                only_folds=folds,
                devices=devices,
                max_hours=hours,
                overwrite=overwrite,
                start_only=start_only,
                **({"only_regions": regions} if regions else {}),
            )
        if family == "regional" and trained.finished:
            typer.echo(region_lines(trained.dir / "regions.csv"))
        typer.echo(f"{trained.name}: {'started' if start_only else outcome(trained)}")


@app.command()
def settings(
    family: Annotated[str, typer.Argument(help="multiview, retrieval, regional, ridge or vlm.")],
) -> None:
    """List the settings of a family, with their defaults and meanings: what -p of `train` can set."""
    config = family_module(family).Config
    for name, default in config.defaults().items():
        typer.echo(f"{name:<23} {default!s:<28} {config.COMMENTS[name]}")


@app.command()
def train_fold(
    run: str,
    fold: int,
    data: Annotated[str, typer.Option(help="Where the data is, if not where the run says.")] = "",
    devices: Annotated[int, typer.Option(min=1)] = 1,
    max_hours: float | None = None,
    region: Annotated[str, typer.Option(help="Of a regional run: whose encoder.")] = "",
) -> None:
    """Train one fold of a started run; `python -m torch.distributed.run` calls this for several GPUs."""
    from kitlib.evaluation import runs

    if max_hours is not None:
        checks.number("--max-hours", max_hours, 0, kind=float, above=True)
    module = family_module(runs.open_run(run).settings["family"])
    module.train_fold(run, fold, data, devices, max_hours, **({"only_regions": region} if region else {}))


@app.command()
def import_weights(
    file: Annotated[Path, typer.Argument(help="A published two-head model such as best_finetune.pt.")],
    run: Annotated[str, typer.Argument(help="The new run's name.")],
    data: Annotated[str, typer.Option(help="Its states: a folder, a .zip, or a name under data/raw.")] = "sample",
    encoder: Annotated[Path | None, typer.Option(help="A new folder for its vision tower, to train from.")] = None,
    parameter: Annotated[list[str] | None, SETTINGS] = None,
) -> None:
    """Make a run of published weights of another layout, to locate with or to train on from."""
    from kitlib.data import readers
    from kitlib.models import multiview

    settings = multiview.Config.typed(pairs(parameter))
    with stoppable():
        imported = multiview.import_weights(file, run, readers.load(data), settings, encoder)
    typer.echo(f"{imported.name}: {imported.metrics['imported']}")


@app.command()
def locate(
    run: Annotated[str, typer.Argument(help="A finished run, hf:USER/NAME, or a submission, whose blend answers.")],
    photos: Annotated[str, typer.Argument(help="A picture, a folder or .zip of pictures, or a folder with a table.")],
    out: Annotated[Path, typer.Option(help="Where the answers go.")] = Path("answers"),
    data: Annotated[str, typer.Option(help="Where the training data is, if not where the run says.")] = "",
    parameter: Annotated[list[str] | None, FILES] = None,
) -> None:
    """Say where photographs were taken: a table, a page with maps, a submission where there is a template."""
    from kitlib.models import locate as asking
    from kitlib.platforms import hub as on_hub

    with stoppable():
        files = {name.lower(): value for name, value in pairs(parameter).items()}
        answer = asking.ask(on_hub.local(run), photos, data, **files)
        written = answer.save(out)
    if answer.score:
        typer.echo(answer.score)
    for path in written:
        typer.echo(path)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="A finished run, hf:USER/NAME, or a submission, whose blend answers.")],
    data: Annotated[str, typer.Argument(help="A competition's folder: its test places are asked.")],
    out: Annotated[Path, typer.Option(help="Where the submission and the answers go.")] = Path("answers"),
    parameter: Annotated[list[str] | None, FILES] = None,
) -> None:
    """Answer for the test places of a data set: a submission, besides what `locate` writes."""
    locate(run, data, out, "", parameter)


@app.command()
def runs(
    names: Annotated[list[str] | None, typer.Argument(help="Runs to list; all when left out.")] = None,
) -> None:
    """List the runs, the latest first: score with its interval, data, folds, date, what differs."""
    from kitlib.evaluation import comparison

    typer.echo(comparison.as_text(comparison.table(names or None)))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A finished run.")],
    b: Annotated[str, typer.Argument(help="Another one on the same places.")],
    data: Annotated[str, typer.Option(help="Where the data is, if not where the run says.")] = "",
    out: Annotated[Path | None, typer.Option(help="A .png for the map of gains, or a .html with all of it.")] = None,
) -> None:
    """Compare two runs place by place: settings, difference of the score with its interval, gains by state, a map."""
    from kitlib.evaluation import comparison, origin
    from kitlib.evaluation.runs import open_run

    if out is not None:
        checks.one_of("--out", out.suffix.lower(), (".png", ".html"))
    places = origin.reload_places(open_run(a), data)
    both = comparison.compare(a, b, places)
    typer.echo(both)
    if out is not None:
        from kitlib.figures import maps, pages, style

        note = style.join_notes(both.states, places.note)
        figure = maps.gains(both.points, both.gains, a, b, title=both.verdict, note=note)
        pages.save_comparison(out, f"{a} and {b}", both._repr_html_(), figure)
        typer.echo(out)


@app.command()
def again(
    run: Annotated[str, typer.Argument(help="The run to repeat.")],
    name: Annotated[str, typer.Option(help="Of the repetition; RUN-again when left out.")] = "",
    data: Annotated[str, typer.Option(help="Where the data is, if not where the run says.")] = "",
    even_so: Annotated[bool, typer.Option("--even-so", help="Although code, libraries or data have changed.")] = False,
    devices: Annotated[int, typer.Option(help="GPUs, or processes on a CPU.", min=1)] = 1,
    parameter: Annotated[list[str] | None, FILES] = None,
) -> None:
    """Train a run anew from its params.json; refuse, with the difference, when code or data have changed."""
    from kitlib.core import paths
    from kitlib.evaluation import comparison, fold_files, origin
    from kitlib.evaluation.runs import open_run

    for setting, value in pairs(parameter).items():
        paths.portable(setting.lower(), value)
    earlier = open_run(run)
    settings, places = earlier.settings, origin.reload_places(earlier, data)
    if (changed := comparison.changes_since(earlier, places)) and not even_so:
        raise KitError(
            f"{run} would not be repeated as it was ({'; '.join(changed)}): add --even-so to train all the same"
        )
    module = family_module(settings["family"])
    with stoppable():
        trained = module.train(
            module.Config.from_run(settings),
            places,
            name or f"{run}-again",
            folds_column=settings["folds_column"],
            n_folds=settings["n_folds"],
            only_folds=fold_files.done(earlier) or None,
            devices=devices,
        )
    typer.echo(f"{trained.name}: {outcome(trained)}")


@app.command()
def merge(
    run: Annotated[str, typer.Argument(help="A run of the family vlm.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    fold: Annotated[int | None, typer.Option(help="Whose adapter; the first done fold's when left out.")] = None,
) -> None:
    """Write a vision-language model with its adapter merged in, as transformers and vLLM load it."""
    from kitlib.models import vlm

    typer.echo(vlm.merge(run, out, fold))


@app.command()
def watch(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    port: Annotated[int, typer.Option(help="Of the page's address; 0 takes a free one.")] = 8765,
) -> None:
    """Show the training of a vision-language model, live or as a replay, on a local web page."""
    from kitlib.models import vlm

    vlm.watch(run, port, typer.echo)


@app.command()
def doctor() -> None:
    """Describe this machine: versions, device, threads, memory, disk."""
    from kitlib.platforms import doctor as machine

    for name, fact in machine.facts().items():
        typer.echo(f"{name:<18} {fact}")


def beside(data: str, tables: dict[str, str]) -> str:
    """The data folder of a region table: `data`, or that of train_csv, to whose folder `tables` are made relative."""
    if data != "sample" or "train_csv" not in tables:
        return data
    folder = Path(tables["train_csv"]).absolute().parent
    for name in tables.keys() - {"region_column"}:
        tables[name] = os.path.relpath(tables[name], folder)
    return str(folder)


def region_lines(file: Path) -> str:
    """The table of a regional run's regions, as text: places, model, and mean and median error in km."""
    import pandas as pd

    columns = ["region", "train", "held_out", "model", "mean_km", "median_km", "median_point_km"]
    table = pd.read_csv(file, dtype={"region": str})[columns].round(2).astype({"train": int})
    return table.rename(columns=lambda name: name.replace("_", " ")).fillna("").to_string(index=False)


commands.add_to(app)
submission_commands.add_to(app)


def outcome(run: Run) -> str:
    """The result of a training in a few words."""
    if not run.finished:
        return "time is up; the same command continues"
    if "oof" in run.metrics:
        return f"{run.metrics['oof']['final']:.4f} out of fold"
    return f"mean error {run.metrics['within_regions']['mean_km']:.2f} km within the known regions"


def family_module(family: str) -> ModuleType:
    """Import the package of a family that is trained by folds. Raises KitError for an unknown one."""
    checks.one_of("family", family, ("multiview", "retrieval", "regional", "ridge", "vlm"))
    return importlib.import_module(f"kitlib.models.{family}")


def main() -> None:
    """Run the command line; what is the user's to mend ends it with one sentence on stderr and exit code 2."""
    if processes.launched():  # before torch is imported, which takes seconds
        processes.end_with_parent()
    # a log file, in which lines cannot be overwritten, gets fewer progress bars
    os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "20")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("kitlib").setLevel("INFO")
    if not processes.is_first_process():  # one log and one bar of all processes
        logging.getLogger("kitlib").setLevel("ERROR")
        os.environ["TQDM_DISABLE"] = "1"
    try:
        app()
    except Exception as error:
        text = sentence(error)
        if isinstance(error, FileNotFoundError) and not paths.home().exists():  # below /proc, for example
            text = f"KITLIB_HOME: expected a folder that exists or can be made; got {shown(str(paths.home()))}"
        if text is None:
            raise
        if not processes.is_first_process():  # which says the same, and whose end is the end of this one
            time.sleep(2 * processes.LOOK_SECONDS)
        typer.echo(f"error: {text}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
