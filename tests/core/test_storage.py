"""What is read back as it was written, what is refused, and who may hold a lock."""

from __future__ import annotations

import errno
import multiprocessing
import os

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
    assert not list((tmp_path / "deep").iterdir())


def _count(path, number, times):
    for _ in range(times):
        with storage.lock(path):
            number.write_text(str(int(number.read_text()) + 1))


def test_only_one_process_at_a_time_holds_a_lock(tmp_path):
    number = tmp_path / "number"
    number.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(tmp_path / ".lock", number, 200)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert number.read_text() == "600" and [path.name for path in tmp_path.iterdir()] == ["number"]


def test_a_sealed_folder_is_refused_when_any_of_its_files_differs(tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    for name in ("a.bin", "deep/b.bin"):
        (tmp_path / "model" / name).write_bytes(bytes(1000))
        (tmp_path / "model" / name).chmod(0o600)
    storage.check_seal(tmp_path / "model")  # an earlier kit's has no seal
    storage.seal(tmp_path / "model")
    storage.check_seal(tmp_path / "model")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {storage.MODE}
    (tmp_path / "model/deep/b.bin").write_bytes(bytes(999) + b"x")
    with pytest.raises(
        Damaged, match=r"b\.bin in deep: expected the file as it was written; got another content: mend"
    ):
        storage.check_seal(tmp_path / "model", "mend")
    (tmp_path / "model/deep/b.bin").unlink()
    with pytest.raises(Damaged, match="got no such file"):
        storage.check_seal(tmp_path / "model")


def test_all_files_have_one_mode(tmp_path):
    with storage.atomic_write(tmp_path / "a") as beside:
        beside.touch(0o600)
    storage.write_json(tmp_path / "b.json", {})
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~storage.UMASK}


def test_space_that_is_reserved_is_there_or_an_error(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    storage.reserve(tmp_path / "a", 1_000_000)
    assert (tmp_path / "a").stat().st_blocks * 512 >= 1_000_000

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left.*a'"):
        storage.reserve(tmp_path / "a", 10)
    assert not (tmp_path / "a").exists()


def test_errors_of_reading_are_told_and_those_of_the_system_pass(tmp_path):
    with (
        pytest.raises(Damaged, match=r"a in .*: expected b; got TypeError: c"),
        storage.reading(tmp_path / "a", "b", "c"),
    ):
        raise TypeError
    for error in (KitError("mine"), PermissionError(errno.EACCES, "x")):
        with pytest.raises(type(error)), storage.reading(tmp_path / "a"):
            raise error


def test_what_the_system_refuses_is_one_sentence():
    assert refusal(OSError(errno.EROFS, "x", "/a/b")) == "b: the file system is read-only"
    assert refusal(OSError(errno.ENOSPC, "x")) == "no space or no inodes are left on the disk"
    assert refusal(FileNotFoundError(errno.ENOENT, "x")) is None


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a\0b", "x" * 101, ".hidden", "é"])
def test_names_that_make_files(name):
    with pytest.raises(KitError, match="NAME: expected"):
        paths.file_name(name, "NAME")
    assert paths.file_name("a.b-C_9", "NAME") == "a.b-C_9"
