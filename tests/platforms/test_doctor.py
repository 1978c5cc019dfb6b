"""doctor: what decides how fast this machine is, without secrets or names of the machine."""

from __future__ import annotations

import getpass
import socket

from kitlib.platforms import doctor


def test_facts_are_there_and_tell_nothing_of_the_owner(home, monkeypatch):
    monkeypatch.setenv("KITLIB_DEVICE", "cpu")
    facts = doctor.facts()
    assert {"python", "torch", "trl", "device", "cores", "memory", "disk"} <= facts.keys()
    assert facts["device"].split(",")[0] == "cpu" and all(facts.values())
    monkeypatch.setenv("KITLIB_HOME", str(home / "not" / "yet"))
    assert doctor.facts()["disk"] and not (home / "not").exists()
    assert not {socket.gethostname(), getpass.getuser()} & set(" ".join(facts.values()).split())
