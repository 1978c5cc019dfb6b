"""The commands `kitlib hub …`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Runs to and from the Hugging Face hub.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def push(
    run: Annotated[list[str], typer.Argument(help="Finished runs, such as the seeds of one training.")],
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="Made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, not private.")] = False,
) -> None:
    """Push finished runs with a model card; folds and further runs share one repository."""
    from kitlib.platforms import hub

    typer.echo(hub.push(run, repo, public))


@app.command()
def pull(repo: Annotated[str, typer.Argument(metavar="USER/NAME")]) -> None:
    """Pull the runs of a repository, checked; nothing in them is unpickled."""
    from kitlib.platforms import hub

    for name in hub.pull(repo.removeprefix("hf:")):
        typer.echo(name)
