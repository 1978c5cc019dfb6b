"""The commands for other machines: `kitlib embed`, `kitlib jobs`."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from kitlib.core import checks, paths, processes
from kitlib.core.cli import pairs, stoppable
from kitlib.core.errors import KitError, shown

log = logging.getLogger(__name__)

ENGINES = ("local", "slurm", "modal")
NAME_VALUE = "NAME=VALUE"


def add_to(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command()(embed)
    app.command()(jobs)


def embed(
    data: Annotated[str, typer.Argument(help="A folder, a .zip, or a name under data/raw.")],
    encoder: Annotated[str, typer.Option(help="As in a notebook; several are joined by +.")],
    image_size: Annotated[int, typer.Option(help="Pixels the encoder sees; 0 for its own size.", min=0)] = 0,
    mirror: Annotated[bool, typer.Option("--mirror", help="The mirrored places as well.")] = False,
    shard: Annotated[str, typer.Option(help="Only this part: 0/4 to 3/4, on any machine.")] = "",
    devices: Annotated[int, typer.Option(help="GPUs, or processes on a CPU.", min=1)] = 1,
) -> None:
    """Compute the features of all pictures by a frozen encoder, or one shard of them; resume what was interrupted."""
    number, shards = _shard(shard)
    if devices > 1 and not processes.launched():
        words = ["embed", data, "--encoder", encoder, "--image-size", str(image_size)]
        words += (["--mirror"] if mirror else []) + (["--shard", shard] if shard else [])
        raise typer.Exit(processes.run_on_devices(devices, words))
    from kitlib.data import readers
    from kitlib.data.pictures import pack
    from kitlib.data.places import SPLITS
    from kitlib.vision import embeddings, encoders

    places = readers.load(data)
    folder = places.derived / "embeddings"
    for network in [encoders.load(name, image_size or None) for name in paths.joined(encoder)]:
        for split in [split for split in SPLITS if len(places.rows(split))]:
            packed = pack(places, split)
            if not shard:
                made = embeddings.embed(packed, network, folder, mirror)
                text = f"{len(made.features)} places, {made.key}"
            else:
                number_of_all = number * processes.count() + processes.rank(), shards * processes.count()
                missing = embeddings.embed_shard(packed, network, folder, *number_of_all, mirror=mirror)
                text = f"shard {shard}, {f'{missing} parts are missing' if missing else 'all parts are there'}"
            if processes.is_first_process():
                typer.echo(f"{network.name}, {split}: {text}")


def _shard(text: str) -> tuple[int, int]:
    """Read 1/4 as (1, 4), and nothing as (0, 1). Raises KitError for a shard that there is not."""
    number, _, shards = (text or "0/1").partition("/")
    known = number.isdecimal() and shards.isdecimal() and len(text) < 12
    if not known or not int(number) < int(shards):
        raise KitError(f"--shard: expected NUMBER/SHARDS, numbers from 0, such as 0/4 to 3/4; got {shown(text)}")
    return int(number), int(shards)


def jobs(
    plan: Annotated[str, typer.Argument(help="A plan's name, as `plans` lists them, or the path of a YAML file.")],
    on: Annotated[str, typer.Option(help="local: processes on this machine; slurm; modal.")] = "local",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar=NAME_VALUE, help="Set a parameter of the plan; may be repeated."),
    ] = None,
    shards: Annotated[int, typer.Option(help="Jobs that share the embedding by one encoder.", min=1, max=1024)] = 1,
    at_once: Annotated[int, typer.Option(help="Jobs at the same time.", min=1, max=1024)] = 1,
    hours: Annotated[float, typer.Option(help="A job's time limit; Slurm then queues it again.", min=0.01)] = 24,
    gpu: Annotated[str, typer.Option(help="Of modal: T4, L4, A10, L40S, A100, H100, H200, B200.")] = "H100",
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", metavar=NAME_VALUE, help="An option of sbatch, such as partition=gpu."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Of modal: do not ask after the estimate.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only print the commands, for any other engine.")] = False,
) -> None:
    """Train a plan's folds as independent jobs, then run the plan, which finds them done."""
    from kitlib.pipeline import runner
    from kitlib.platforms import jobs as work

    checks.one_of("--on", on, ENGINES)
    given, more = pairs(parameter), pairs(slurm)
    stages = work.expand(plan, given, 1 if on == "modal" else shards)
    if on == "modal":
        from kitlib.platforms import modal as cloud

        plan_job = work.Job(f"plan {plan}", tuple(cloud.plan_words(plan, given)))
    if show:
        for job in (job for stage in stages for job in stage):
            typer.echo(job.command)
        if on == "modal":
            typer.echo(f"# {cloud.estimate(plan, given, gpu)}")
        return
    devices = int(given.get("DEVICES", 1))

    def done(stage: list[work.Job]) -> None:
        if on == "local":
            engine = work.on_this_machine(stage, at_once, devices, hours)
        elif on == "slurm":
            engine = work.on_slurm(stage, at_once, devices, hours, more)
        else:
            engine = cloud.on_modal(stage, gpu, devices)
        if failed := work.failures(engine):
            for job, reason in failed.items():
                typer.echo(f"error: {job.name}: {reason}\n  alone: {job.command}", err=True)
            raise typer.Exit(1)

    with stoppable():
        if on == "modal":
            with cloud.one_sentence():
                cloud.confirm(plan, given, gpu, yes)
                cloud.bring(plan, given, "")
                for stage in filter(None, [*stages, [plan_job]]):
                    done(stage)
                cloud.download()
            return
        for stage in filter(None, stages):
            done(stage)
        typer.echo(runner.run_plan(plan, given))
