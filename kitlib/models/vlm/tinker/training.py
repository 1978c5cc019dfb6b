"""Fine-tuning and reinforcement learning on Tinker's machines, by tinker-cookbook's loops.

train("grpo", dataset, model, folder, rate=1e-5, lora_rank=16, save_every=100, max_tokens=64)
lines = history(folder)
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kitlib.models.vlm.conversation.prompts import Message
from kitlib.models.vlm.tinker.client import check, last_checkpoint, library, run_in_thread
from kitlib.models.vlm.tinker.environments import ExampleDataset, GroupDataset, Renderer

LOCAL = ("code.diff", "config.json", "logs.log")  # files of the cookbook that name folders of this machine
METRICS = {  # the cookbook's names of what TRL's trainers log
    "train_mean_nll": "loss",
    "learning_rate": "learning_rate",
    "optim/lr": "learning_rate",
    "env/all/reward/total": "reward",
    "env/all/km": "km",
    "env/all/parsed": "parsed",
}


def to_datum(renderer: Renderer) -> Callable[[list[Message]], Any]:
    """Makes the cookbook's example of a dialogue, whose last message alone has a loss, the mean over its tokens."""
    data, renderers = library("tinker_cookbook.supervised.data"), library("tinker_cookbook.renderers")
    last = renderers.TrainOnWhat.LAST_ASSISTANT_MESSAGE
    return lambda messages: data.conversation_to_datum(messages, renderer, None, last)


def train(
    method: str,
    dataset: GroupDataset | ExampleDataset,
    model: str,
    folder: Path,
    *,
    rate: float,
    lora_rank: int,
    save_every: int,
    start_from: str = "",
    evaluate: Callable[[Any], Awaitable[dict[str, float]]] | None = None,
    eval_every: int = 0,
    **options: Any,
) -> None:
    """Train LoRA weights with one of the cookbook's loops; called again it continues from its newest checkpoint.

    method: sft, whose rate falls along a cosine, or grpo. folder: of the cookbook's metrics and the addresses of its
    checkpoints, which stay at Tinker. start_from: address of a checkpoint to begin with. evaluate: called with a
    sampling client before the first step and then every `eval_every` steps; `dataset.step` are the steps made.
    options: further fields of the loop's Config, max_tokens and temperature of grpo. Raises KitError without the
    library or the key.
    """
    check()
    loop = library(f"tinker_cookbook.{'supervised' if method == 'sft' else 'rl'}.train")
    base = library("tinker_cookbook.eval.evaluators").SamplingClientEvaluator

    class Evaluator(base):  # type: ignore[misc, valid-type]
        async def __call__(self, sampling_client: Any) -> dict[str, float]:
            assert evaluate is not None
            return await evaluate(sampling_client)

    async def groups() -> tuple[Any, None]:
        return dataset, None

    own: dict[str, Any] = {"dataset_builder": groups, "num_groups_to_log": 0, "rollout_json_export": False}
    if method == "sft":
        own = {"dataset_builder": lambda: (dataset, None), "lr_schedule": "cosine"}
    config = loop.Config(
        learning_rate=rate,
        model_name=model,
        recipe_name="kitlib",
        lora_rank=lora_rank,
        log_path=str(folder),
        load_checkpoint_path=start_from or None,
        save_every=save_every,
        evaluator_builders=[Evaluator] if evaluate else [],
        eval_every=eval_every,
        **own,
        **options,
    )
    if (saved := last_checkpoint(folder, "state_path")) is not None:
        dataset.step = saved.batch  # grpo resumes with an evaluation, before it asks for a batch
    try:
        run_in_thread(loop.main(config))
    finally:
        if isinstance(dataset, GroupDataset) and dataset.buffer is not None:
            dataset.buffer.close()
        for name in LOCAL:
            (folder / name).unlink(missing_ok=True)


def history(folder: Path) -> list[dict[str, Any]]:
    """What the loop in `folder` has logged, by optimizer steps made: evaluations as they are, METRICS by our names."""
    if not (folder / "metrics.jsonl").is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        try:
            logged = json.loads(text)
        except json.JSONDecodeError:  # of a kill
            continue
        scores = {name: value for name, value in logged.items() if name.startswith("eval_")}
        values = {name: logged[theirs] for theirs, name in METRICS.items() if theirs in logged}
        lines += [{"step": logged["step"], **scores}] if scores else []
        lines += [{"step": logged["step"] + 1, **values}] if values else []
    return lines
