"""The commands for submissions: `kitlib score`, `validate`, `diff` and `submissions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kitlib.core import checks


def add_to(app: typer.Typer) -> None:
    """Add the commands to an app."""
    for command in (score, validate, diff, submissions):
        app.command()(command)


def score(truth: Path, submission: Path) -> None:
    """Score a submission against the truth, as the competition does."""
    from kitlib.evaluation.submission import score_files

    typer.echo(score_files(truth, submission))


def validate(
    submission: Path,
    template: Annotated[Path, typer.Option(help="sample_submission.csv of the competition.")],
    mapping: Annotated[Path | None, typer.Option(help="state_mapping.csv of the competition.")] = None,
    allow_unknown_states: Annotated[bool, typer.Option(help="Only warn about states that the mapping lacks.")] = False,
    fix: Annotated[Path | None, typer.Option(help="A new .csv: the same predictions as Kaggle expects them.")] = None,
) -> None:
    """Check a submission: refuse faults that Kaggle would refuse, and warn of suspicious content."""
    from kitlib.evaluation import submission_files, submission_mending

    rules = template, mapping, allow_unknown_states
    mends: list[str] = []
    if fix is None:
        warnings = submission_files.validate(submission, *rules)
    else:
        mends, warnings = submission_mending.mend(submission, fix, *rules)
    for mend in mends:
        typer.echo(f"mended: {mend}")
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    valid = f"{(fix or submission).name} is valid" + (f", with {len(warnings)} warnings" if warnings else "")
    typer.echo(valid + ("; nothing had to be mended" if fix and not mends else ""))


def diff(
    a: Path,
    b: Path,
    out: Annotated[
        Path | None, typer.Option(help="A .png for the map of differences, or a .html with a table.")
    ] = None,
) -> None:
    """Show where two submissions differ."""
    from kitlib.evaluation import submission

    if out is not None:
        checks.one_of("--out", out.suffix.lower(), (".png", ".html"))
    both = submission.diff(a, b)
    typer.echo(both)
    if out is not None:
        from kitlib.figures import maps, pages

        differs = both.rows["first_a"] != both.rows["first_b"]
        title = f"{a.name} and {b.name}: another first state in {both.first_differs:.1%}, {both.mean_km:,.0f} km apart"
        figure = maps.differences(both.points_a, both.points_b, both.rows["km"], differs, title=title)
        pages.save_comparison(out, f"{a.name} and {b.name}", both._repr_html_(), figure)
        typer.echo(out)


def submissions(
    public: Annotated[
        tuple[str, float] | None, typer.Option(metavar="NAME SCORE", help="Note a score of the public leaderboard.")
    ] = None,
) -> None:
    """List the submissions with all their scores, the day's use, and how public scores follow the out-of-fold ones."""
    from kitlib.evaluation import comparison, ledger

    if public is not None:
        ledger.set_public(*public)
    table = ledger.table()
    typer.echo(comparison.as_text(table, "no submissions yet"))
    typer.echo("")
    for competition, used in (ledger.used_today() or {"the competition": 0}).items():
        typer.echo(f"{used} of today's {ledger.A_DAY} submissions to {competition} are used, by the records here")
    typer.echo(ledger.agreement(table))
