"""fitting: schedules, resuming, time budgets; slow: real processes, killed, terminated, in pairs."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

import fitting_helper as helper
import pytest
import torch

from kitlib.core.errors import KitError
from kitlib.training import fit

HELPER = Path(helper.__file__)


def test_total_steps():
    assert fit.total_steps(10, 4, 2, 3) == 6
    assert fit.total_steps(10, 4, 1, 1, devices=2) == 2
    assert fit.total_steps(1, 64, 8, 5, devices=4) == 5


def test_warmup_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 2.0)
    schedule, rates = fit.warmup_cosine(optimizer, 20, 0.2), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[12] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[4:])) and 0 < rates[-1] < 0.05
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("accumulate", "crash"), [(1, (0, 5)), (1, (1, 0)), (1, (1, 3)), (4, (1, 2)), (4, (2, 5))])
def test_crash_resumes_from_the_last_checkpoint(tmp_path, accumulate, crash, precision):
    def explode(epoch, batch):
        if (epoch, batch) == crash:
            raise MemoryError("boom")

    given = {"accumulate": accumulate, "checkpoint_steps": 4, "precision": precision}
    module, batches, folder, options = helper.make(tmp_path, **given)
    module.before_batch = explode
    with pytest.raises(MemoryError, match="boom"):
        fit.fit(module, batches, folder, **options)
    module, fitted = helper.fit(tmp_path, **given)
    weights, history = helper.whole(accumulate, precision)
    assert fitted.finished and helper.weights(module) == weights
    helper.same_history(fitted.history, history)


def test_max_hours(tmp_path):
    module, fitted = helper.fit(tmp_path, checkpoint_steps=4, max_hours=0)
    assert not fitted.finished and fitted.steps == 1 == module.train_calls
    sessions = 1
    while not fitted.finished:
        module, fitted = helper.fit(tmp_path, checkpoint_steps=4, max_hours=0.02 / 3600)
        sessions += 1
        assert sessions < 60
    assert sessions > 2 and fitted.steps == 18 and helper.weights(module) == helper.whole()[0]
    helper.same_history(fitted.history, helper.whole()[1])


def test_finished_fit_returns_at_once(tmp_path):
    _, fitted = helper.fit(tmp_path, checkpoint_steps=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finished.ckpt", "fit.json", "history.csv"]
    began = time.monotonic()
    module, again = helper.fit(tmp_path, checkpoint_steps=4)
    assert time.monotonic() - began < 0.5 and module.train_calls == 0
    assert helper.weights(module) == helper.whole()[0]
    assert again.finished and (again.steps, again.seconds) == (fitted.steps, fitted.seconds)
    helper.same_history(again.history, fitted.history)


@pytest.mark.parametrize(("has_bf16", "name"), [(False, "32-true"), (True, "bf16-mixed")])
def test_auto_is_one_number_type_from_the_first_step_to_the_last(tmp_path, monkeypatch, has_bf16, name):
    monkeypatch.delenv("KITLIB_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    types = set()
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4, precision="auto")
    module.before_batch = lambda epoch, batch: types.add(torch.is_autocast_enabled("cpu"))
    fitted = fit.fit(module, batches, folder, **options)
    assert fitted.finished and types == {has_bf16}
    assert json.loads((tmp_path / "fit.json").read_text())["settings"]["precision"] == name
    assert {value.dtype for value in module.net.parameters()} == {torch.float32}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not has_bf16)
    with pytest.raises(KitError, match=f"precision was '{name}'"):
        helper.fit(tmp_path, checkpoint_steps=4, precision="auto")


def test_quiet_and_leaves_nothing_else_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        helper.fit(tmp_path / "run", checkpoint_steps=4)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") <= 1 and "18/18" in err
    assert [str(w.message) for w in caught] == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_devices_need_torchrun(tmp_path):
    with pytest.raises(KitError, match="nproc_per_node 2"):
        helper.fit(tmp_path, devices=2)


@pytest.fixture(scope="module")
def fork():
    """Starts helper.fit in a process of its own, from one that has done the slow imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HELPER.parent))  # where the server finds the helper
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([HELPER.stem])

        def start(folder: Path):
            process = context.Process(
                target=helper.fit, args=(folder,), kwargs={"checkpoint_steps": 4, "pause": 0.1}, daemon=True
            )
            process.start()
            return process

        yield start


def wait_for_step(folder: Path, step: int, process: multiprocessing.Process) -> None:
    while not any(int(path.stem[5:]) >= step for path in folder.glob("step-*.ckpt")):
        assert process.is_alive()
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_process_loses_nothing_before_its_checkpoint(fork, tmp_path):
    process = fork(tmp_path)
    wait_for_step(tmp_path, 6, process)
    process.kill()
    process.join()
    module, fitted = helper.fit(tmp_path, checkpoint_steps=4)
    assert 0 < module.train_calls <= 12
    assert helper.weights(module) == helper.whole()[0]
    helper.same_history(fitted.history, helper.whole()[1])


@pytest.mark.slow
def test_terminated_process_saves_at_once(fork, tmp_path):
    process = fork(tmp_path)
    wait_for_step(tmp_path, 4, process)
    process.terminate()
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    saved = max(int(path.stem[5:]) for path in tmp_path.glob("step-*.ckpt"))
    module, fitted = helper.fit(tmp_path, checkpoint_steps=4)
    assert module.train_calls == 18 - saved > 0
    assert helper.weights(module) == helper.whole()[0]
    helper.same_history(fitted.history, helper.whole()[1])


@pytest.mark.slow
def test_two_machines_learn_what_one_process_does(tmp_path):
    """Two launchers that meet at a port, as on two machines; the same when they are stopped after each step and go on.

    They have the same rows a step as the one process, and one left over for the last.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = "rows=21", "dropout=0", "checkpoint_steps=3", "batch_size=2", "accumulate=2", "devices=2"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KITLIB_DEVICE": "cpu"}
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = [subprocess.Popen([*torchrun, HELPER, tmp_path / "two", *words], **options) for _ in range(2)]
    said = [node.communicate(timeout=280) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    at_once, in_pieces = (json.loads(line) for out, _ in said for line in out.splitlines())
    one, fitted = helper.fit(tmp_path / "one", rows=21, dropout=0, checkpoint_steps=3, batch_size=4, accumulate=2)
    assert at_once["steps"] == fitted.steps == in_pieces["sessions"] - 1 and at_once["sessions"] == 1
    assert at_once["loss"] == pytest.approx(helper.error(one), rel=1e-4)
    assert at_once["history"] == pytest.approx(fitted.history["loss"].tolist(), rel=1e-4)
    assert (in_pieces["weights"], in_pieces["history"]) == (at_once["weights"], at_once["history"])
