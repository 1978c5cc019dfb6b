"""checkpoints: damaged files, a full disk, other settings."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import fitting_helper as helper
import pytest

from kitlib.core.errors import Damaged, KitError
from kitlib.training import fit


def test_other_settings_are_refused(tmp_path):
    helper.fit(tmp_path, max_hours=0, config={"rate": 0.05, "fusion": {"kind": "average", "heads": (1, 2)}})
    helper.fit(tmp_path, max_hours=0, config={"rate": 0.05, "fusion": {"kind": "average", "heads": [1, 2]}})
    with pytest.raises(KitError) as error:
        helper.fit(tmp_path, max_hours=0, epochs=4, config={"rate": 0.1, "fusion": {"kind": "average"}})
    assert "config.rate was 0.05, now 0.1" in str(error.value) and "epochs was 3, now 4" in str(error.value)
    assert "config.fusion.heads was [1, 2], now 'unset'" in str(error.value) and "kind" not in str(error.value)
    with pytest.raises(KitError, match=r"seed was 0, now 1"):
        helper.fit(tmp_path, seed=1, config={"rate": 0.05, "fusion": {"kind": "average", "heads": (1, 2)}})


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "hole", "flipped"])
def test_damaged_checkpoint_falls_back(tmp_path, damage, caplog):
    crash(tmp_path, at=(1, 4))
    newer = max(tmp_path.glob("step-*.ckpt"))
    whole_file = newer.read_bytes()
    middle = len(whole_file) // 2
    flipped = whole_file[:middle] + bytes([whole_file[middle] ^ 1]) + whole_file[middle + 1 :]
    contents = {"cut": whole_file[:-1000], "empty": b"", "garbage": os.urandom(5000), "hole": b"", "flipped": flipped}
    newer.write_bytes(contents[damage])
    if damage == "hole":  # the end is there, the middle never reached the disk
        newer.write_bytes(whole_file[:1000] + bytes(len(whole_file) - 3000) + whole_file[-2000:])
    module, fitted = helper.fit(tmp_path, checkpoint_steps=4)
    assert newer.name in caplog.text and "cut short" in caplog.text
    assert helper.weights(module) == helper.whole()[0]
    helper.same_history(fitted.history, helper.whole()[1])


def test_no_readable_checkpoint_is_refused(tmp_path):
    crash(tmp_path, at=(1, 4))
    for path in tmp_path.glob("step-*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(KitError, match="none of 2 checkpoints"):
        helper.fit(tmp_path, checkpoint_steps=4)


def test_any_flipped_bit_of_final_weights_is_noticed(tmp_path):
    module, _ = helper.fit(tmp_path, epochs=1)
    path = tmp_path / "finished.ckpt"
    whole = path.read_bytes()
    for weight in module.state_dict().values():
        at = whole.index(weight.numpy().tobytes())
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(
            Damaged, match=r"finished\.ckpt in .*: expected a whole checkpoint; .*: delete .* run the same"
        ):
            helper.fit(tmp_path, epochs=1)


@pytest.mark.parametrize("content", [b"", b"\x80", b'{"settings": {"con', b"[]", b"null", b"{}"])
def test_a_record_that_cannot_be_read_is_refused(tmp_path, content):
    helper.fit(tmp_path, epochs=1)
    (tmp_path / "fit.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"fit\.json in .*: delete"):
        helper.fit(tmp_path, epochs=1)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x81"])
def test_a_history_that_cannot_be_read_is_only_told(tmp_path, content, caplog):
    module, _ = helper.fit(tmp_path, epochs=1)
    (tmp_path / "history.csv").unlink() if content is None else (tmp_path / "history.csv").write_bytes(content)
    again, fitted = helper.fit(tmp_path, epochs=1)
    assert helper.weights(again) == helper.weights(module) and fitted.history.empty
    assert "the training history cannot be read" in caplog.text


def crash(folder: Path, at: tuple[int, int]) -> None:
    def explode(epoch, batch):
        if (epoch, batch) == at:
            raise MemoryError

    module, batches, folder, options = helper.make(folder, checkpoint_steps=4)
    module.before_batch = explode
    with pytest.raises(MemoryError):
        fit.fit(module, batches, folder, **options)


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
    """A real limit on the size of files: the write begins and breaks off."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(epoch, batch):
        if (epoch, batch) == (1, 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    module.before_batch = fill
    try:
        with pytest.raises(KitError, match=r"step-00000008.ckpt could not be written"):
            fit.fit(module, batches, folder, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step-00000004.ckpt", "step-00000006.ckpt"]
    module, _ = helper.fit(tmp_path, checkpoint_steps=4)
    assert helper.weights(module) == helper.whole()[0]


def test_half_written_checkpoints_are_swept(tmp_path):
    (tmp_path / ".step-00000004.abcd.ckpt").write_bytes(b"half")
    helper.fit(tmp_path, epochs=1)
    assert not list(tmp_path.glob(".step*"))
