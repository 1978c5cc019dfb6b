"""doctor: what decides how fast this machine is, without secrets or names of the machine."""

from __future__ import annotations

import getpass
import importlib.metadata
import socket
import time

import pytest

from kitlib.platforms import doctor


def test_facts_are_there_and_tell_nothing_of_the_owner(home, monkeypatch):
    monkeypatch.setenv("KITLIB_DEVICE", "cpu")
    facts = doctor.facts()
    assert {"python", "torch", "trl", "device", "cores", "memory", "disk"} <= facts.keys()
    assert facts["device"].split(",")[0] == "cpu" and all(facts.values())
    monkeypatch.setenv("KITLIB_HOME", str(home / "not" / "yet"))
    assert doctor.facts()["disk"] and not (home / "not").exists()
    assert not {socket.gethostname(), getpass.getuser()} & set(" ".join(facts.values()).split())


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("KAGGLE_KERNEL_RUN_TYPE", "Batch", "Kaggle, batch session"),
        ("COLAB_RELEASE_TAG", "release", "Colab"),
        ("MODAL_TASK_ID", "ta-1", "Modal"),
        ("SLURM_JOB_ID", "7", "Slurm"),
        ("OTHER", "", "local"),
    ],
)
def test_the_place_is_named(monkeypatch, variable, value, name):
    for other in doctor.PLACES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, value)
    assert doctor.place() == name


def test_hours_are_told_where_a_session_ends(monkeypatch):
    for variable in doctor.PLACES:
        monkeypatch.delenv(variable, raising=False)
    assert doctor.hours_left() == "no limit is known here"
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 7200)))
    assert doctor.hours_left().startswith("2.0 of the Slurm job")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "of Kaggle's 12" in doctor.hours_left()


@pytest.mark.parametrize(
    ("name", "capability", "built_for", "said"),
    [
        ("P100", (6, 0), ["sm_75", "sm_80", "sm_90"], "too old for this torch"),
        ("T4", (7, 5), ["sm_75", "sm_80"], "only emulates bfloat16"),
        ("L4", (8, 9), ["sm_75", "sm_80", "sm_90"], ""),
        ("B300", (10, 3), ["sm_80", "sm_90"], "too new for this torch"),
        ("B300", (10, 3), ["sm_80", "compute_90"], ""),
    ],
)
def test_a_gpu_that_this_torch_cannot_use_is_said(name, capability, built_for, said):
    fault = doctor.gpu_fault(name, capability, built_for)
    assert said in fault and bool(said) == bool(fault)


def test_what_an_extra_lacks_is_said_with_the_line_that_installs_it(monkeypatch):
    there = importlib.metadata.version

    def version(package: str) -> str:
        if package in ("submitit", "trl"):
            raise importlib.metadata.PackageNotFoundError(package)
        return there(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["numpy", "trl>=1.16; extra == 'rl'", 'submitit; extra == "dev"']
    )
    assert doctor.missing_extras() == {"rl": (["trl"], "pip install -e '.[rl]'")}


def test_a_token_is_told_of_and_never_shown(home, monkeypatch):
    monkeypatch.setenv("KITLIB_DEVICE", "cpu")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    facts = doctor.facts()
    assert facts["hub token"] == "present" and "hf_secret" not in str(facts)
