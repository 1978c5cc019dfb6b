"""The commands `kitlib kaggle …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kitlib.core import paths
from kitlib.core.cli import pairs
from kitlib.core.errors import KitError, shown

app = typer.Typer(help="Kaggle: its data here, plans as notebooks there.", no_args_is_help=True, rich_markup_mode=None)

COMPETITION = typer.Option("--competition", help="As in its address.")
NOTEBOOK = typer.Argument(help="OWNER/SLUG as in the notebook's address.")


@app.command()
def pull(
    competition: Annotated[str, COMPETITION] = paths.COMPETITION,
    verify: Annotated[bool, typer.Option(help="Read every picture once, as the first notebook would.")] = True,
) -> None:
    """Download the competition's data, and check it."""
    from kitlib.platforms.kaggle import client

    typer.echo(client.pull(competition, verify))


@app.command()
def pack(
    plan: Annotated[str, typer.Argument(help="A plan's name, as `plans` lists them, or the path of a YAML file.")],
    owner: Annotated[str, typer.Option(help="Your user name in Kaggle's addresses.")],
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder; data/kaggle/PLAN when left out.")] = None,
    one: Annotated[bool, typer.Option("--one", help="The whole plan as one notebook.")] = False,
    resume: Annotated[str, typer.Option(metavar="STEP[:PART]", help="Pack the next part of a step.")] = "",
    competition: Annotated[str, COMPETITION] = paths.COMPETITION,
    dataset: Annotated[list[str] | None, typer.Option(metavar="OWNER/SLUG", help="Also attach this one.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Weights of an encoder, or their Kaggle Model.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of weights that the kit does not know, as Kaggle names it.")] = "",
    wheels: Annotated[Path | None, typer.Option(help="A folder of wheels, instead of downloading them.")] = None,
) -> None:
    """Write a folder with all that a plan needs on Kaggle: wheels, weights, notebooks."""
    from kitlib.platforms.kaggle import pack as packs

    places = dict(text.partition("=")[::2] for text in weights or [])
    if wrong := [name for name, place in places.items() if not name or not place]:
        raise KitError(f"--weights: expected NAME=FOLDER such as hf:geolocal/StreetCLIP=FOLDER; got {shown(wrong[0])}")
    options = packs.Options(owner, competition, tuple(dataset or ()), places, licence, wheels, one, resume)
    folder = packs.pack(plan, pairs(parameter), options, out)
    typer.echo(packs.summary(folder))
    typer.echo(f"kitlib kaggle push {folder if out else paths.relative(folder)}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="By `pack`.")],
    start_from: Annotated[str, typer.Option("--from", help="Push this step's notebook and those after it.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for each notebook's end, then push the next.")] = True,
) -> None:
    """Push a pack: dataset, weights, then the notebooks in order."""
    from kitlib.platforms.kaggle import client

    try:
        for address in client.push(folder, start_from, wait):
            typer.echo(address)
    except KeyboardInterrupt:
        typer.echo("stopped here; what runs on Kaggle goes on there: continue with --from STEP", err=True)
        raise typer.Exit(130) from None


@app.command()
def logs(
    notebook: Annotated[str, NOTEBOOK],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
) -> None:
    """Show a notebook's log."""
    from kitlib.platforms.kaggle import client

    client.logs(notebook, follow)


@app.command()
def output(notebook: Annotated[str, NOTEBOOK]) -> None:
    """Download a notebook's output, and take over its runs and submissions."""
    from kitlib.platforms.kaggle import client

    typer.echo(client.output(notebook))


@app.command()
def submit(
    name: Annotated[str, typer.Argument(help="Of submissions/NAME.csv.")],
    message: Annotated[str, typer.Option("--message", "-m", help="Shown beside it on Kaggle.")] = "",
    competition: Annotated[str, COMPETITION] = paths.COMPETITION,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Hand in a submission, after asking, and note it in its .json."""
    from kitlib.platforms.kaggle import client

    def confirm(question: str) -> bool:
        if not yes and not sys.stdin.isatty():
            raise KitError(f"{question} Nobody can be asked here: add --yes")
        return yes or typer.confirm(question)

    typer.echo(client.submit(name, message, confirm, competition))


@app.command()
def quota() -> None:
    """Show the hours of GPU that the week has left."""
    from kitlib.platforms.kaggle import client

    client.quota()
