"""The command line: `python -m kitlib --help`.

Each command imports what it needs when it runs, so that help and refusals come at once.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from kitlib.paths import KitError

app = typer.Typer(
    help="Which US state, and where on the globe? Plans, scores and checks from the command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes a third of a second to import
)

PARAMETERS = typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Set a parameter; may be repeated.")


@app.command()
def run(
    plan: Annotated[str, typer.Argument(help="A plan's name, as `plans` lists them, or the path of a YAML file.")],
    parameter: Annotated[list[str] | None, PARAMETERS] = None,
    force: Annotated[bool, typer.Option("--force", help="Run every step, unchanged or not.")] = False,
    start_from: Annotated[str | None, typer.Option("--from", help="Run this step and all after it.")] = None,
) -> None:
    """Run a plan's notebooks in order; what is unchanged is skipped."""
    from kitlib import pipeline

    try:
        report = pipeline.run_plan(plan, pairs(parameter), force=force, start_from=start_from)
    except KeyboardInterrupt:
        logging.getLogger("kitlib").warning("stopped; finished steps are kept: run the same command again to go on")
        raise typer.Exit(130) from None
    except pipeline.StepFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(report)


@app.command()
def plans() -> None:
    """List the plans."""
    from kitlib.plans import list_plans

    for name, description in list_plans().items():
        typer.echo(f"{name:<10} {description}")


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to; must be empty or new.")],
    places: Annotated[int, typer.Option(help="Training places.", min=1)] = 1000,
    test: Annotated[int, typer.Option(help="Test places.", min=1)] = 250,
    size: Annotated[int, typer.Option(help="Width and height of a picture, in pixels.", min=32)] = 256,
    seed: Annotated[int, typer.Option(help="Another seed, another world.")] = 0,
) -> None:
    """Draw a sample competition in the real file format."""
    from kitlib import sample as world

    typer.echo(world.draw(folder, n_train=places, n_test=test, size=size, seed=seed))


@app.command()
def score(truth: Path, submission: Path) -> None:
    """Score a submission against the truth, as the competition does."""
    from kitlib import competition

    typer.echo(competition.score_files(truth, submission))


@app.command()
def validate(
    submission: Path,
    template: Annotated[Path, typer.Option(help="sample_submission.csv of the competition.")],
    mapping: Annotated[Path | None, typer.Option(help="state_mapping.csv of the competition.")] = None,
    allow_unknown_states: Annotated[bool, typer.Option(help="Only warn about states that the mapping lacks.")] = False,
) -> None:
    """Refuse a submission that Kaggle would refuse, warn of what would score badly."""
    from kitlib import competition

    warnings = competition.validate(submission, template, mapping, allow_unknown_states=allow_unknown_states)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{submission.name} is valid" + (f", with {len(warnings)} warnings" if warnings else ""))


@app.command()
def diff(a: Path, b: Path) -> None:
    """Show where two submissions differ."""
    from kitlib import competition

    typer.echo(competition.diff(a, b))


@app.command()
def doctor() -> None:
    """Show what this machine offers: versions, device, threads, memory, disk."""
    import platform
    import shutil

    import psutil
    import torch

    from kitlib import __version__, kernels, paths, runs

    gib = 2**30
    device = paths.device_name() or next(
        (
            name
            for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
            if there
        ),
        "cpu",
    )
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = psutil.virtual_memory()
    facts = {
        "kitlib": __version__,
        "python": platform.python_version(),
        **runs.library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": ", ".join([device, *names]),
        "cores": psutil.cpu_count(),
        "kernel threads": kernels.threads(),
        "memory": f"{memory.available / gib:.1f} of {memory.total / gib:.1f} GiB free",
        "disk": f"{shutil.disk_usage(paths.home()).free / gib:.1f} GiB free where data/ is",
    }
    for name, fact in facts.items():
        typer.echo(f"{name:<18} {fact}")


def pairs(given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE texts as a dict. Raises KitError for a text without a name, and for a name given twice.

    >>> pairs(["EPOCHS=5", "ENCODER=timm:x@a=b"])
    {'EPOCHS': '5', 'ENCODER': 'timm:x@a=b'}
    """
    named: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise KitError(f"-p {text!r}: allowed is NAME=VALUE")
        if name in named:
            raise KitError(f"-p {name} is given twice: {named[name]!r} and {value!r}")
        named[name] = value
    return named


def main() -> None:
    """Run the command line; a KitError is one sentence on stderr and exit code 2."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("kitlib").setLevel("INFO")
    try:
        app()
    except KitError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
