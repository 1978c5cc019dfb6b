"""What is read back as it was written, what is refused, and who may hold a lock."""

from __future__ import annotations

import errno
import multiprocessing

import numpy as np
import pytest

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError, refusal


def test_json_is_read_back_or_refused_by_name(tmp_path):
    file = tmp_path / "run" / "params.json"
    storage.write_json(file, {"a": [1, "é"]})
    assert storage.read_json(file, needed=("a",)) == {"a": [1, "é"]}
    for content in (b"", b"\x80", b'{"a": ', b"[]", b"null", b"[" * 100_000, b"{}"):
        file.write_bytes(content)
        with pytest.raises(Damaged, match=r"params\.json in run: expected"):
            storage.read_json(file, needed=("a",))
    with pytest.raises(FileNotFoundError):
        storage.read_json(tmp_path / "none.json")


def test_every_flipped_byte_of_an_array_is_noticed(tmp_path):
    file = tmp_path / "oof.npz"
    storage.write_npz(file, {"a": np.arange(64.0), "b": np.array(["x"])})
    whole = file.read_bytes()
    assert storage.read_npz(file)["a"][3] == 3
    payload = whole.index(np.float64(3.0).tobytes())
    for content in (b"", whole[:-9], whole[:payload] + b"?" + whole[payload + 1 :], b"no zip"):
        file.write_bytes(content)
        with pytest.raises(Damaged, match=r"oof\.npz in .*: expected a whole \.npz file"):
            storage.read_npz(file)
    storage.write_npz(file, {"a": np.arange(2)})
    with pytest.raises(Damaged, match="missing: b"):
        storage.read_npz(file, needed=("a", "b"))


def _hold(path, held, done):
    with storage.lock(path):
        held.set()
        done.wait(20)


def test_a_lock_is_refused_while_held_and_free_after_a_kill(tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "deep" / ".lock", held, done))
    process.start()
    assert held.wait(20)
    with pytest.raises(KitError, match="busy"), storage.lock(tmp_path / "deep" / ".lock", "busy"):
        pass
    process.kill()
    process.join()
    with storage.lock(tmp_path / "deep" / ".lock", "busy"):
        pass


def test_what_the_system_refuses_is_one_sentence():
    assert refusal(OSError(errno.EROFS, "x", "/a/b")) == "b: the file system is read-only"
    assert refusal(OSError(errno.ENOSPC, "x")) == "no space or no inodes are left on the disk"
    assert refusal(FileNotFoundError(errno.ENOENT, "x")) is None


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a\0b", "x" * 101, ".hidden", "é"])
def test_names_that_make_files(name):
    with pytest.raises(KitError, match="NAME: expected"):
        paths.file_name(name, "NAME")
    assert paths.file_name("a.b-C_9", "NAME") == "a.b-C_9"
