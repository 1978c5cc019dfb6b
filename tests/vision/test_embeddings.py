from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kitlib.core.errors import KitError
from kitlib.data import pictures, readers
from kitlib.vision import augment, device, embeddings, encoders, feature_file, preprocess

CPU = torch.device("cpu")


class ArrayPack(SimpleNamespace):
    """A pack of random pictures in memory that counts what is decoded, and can be told to break."""

    def __init__(self, n: int = 10, split: str = "train", seed: int = 0) -> None:
        self.split, self.views, self.checksum = split, ("north", "east", "south", "west"), f"seed {seed}"
        self.offsets, self.sample_id = np.zeros((n, 4, 2), np.int64), np.arange(n) + 100
        self.pictures = np.random.default_rng(seed).integers(0, 256, (n, 4, 24, 24, 3), dtype=np.uint8)
        self.decoded, self.breaks_at, self.sizes, self.asked = 0, n + 1, [(24, 24)], None

    def decode(self, rows, size=None):
        if rows[-1] >= self.breaks_at:
            raise KeyboardInterrupt
        self.decoded += len(rows)
        self.asked = size
        return self.pictures[rows]


@pytest.fixture(scope="module")
def tiny() -> encoders.Encoder:
    return encoders.load("tiny", image_size=24)


@pytest.fixture
def eager(monkeypatch):
    """Progress is saved after every batch."""
    monkeypatch.setattr(embeddings, "SAVE_SECONDS", 0.0)


def expected(encoder: encoders.Encoder, batch: torch.Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    with torch.inference_mode(), device.autocast(CPU, dtype):
        return encoder(batch.flatten(0, 1)).float().view(len(batch), 4, -1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_the_encoders_own_and_made_once(tiny, tmp_path, dtype):
    pack = ArrayPack()
    made = embeddings.embed(pack, tiny, tmp_path, batch_size=4, device=CPU, dtype=dtype)
    assert made.features.shape == (10, 4, tiny.dim) and made.features.dtype == np.float16 and made.mirrored is None
    assert made.sample_id.tolist() == list(range(100, 110)) and made.pictures_per_second > 0
    close = 8 * max(torch.finfo(dtype).eps, torch.finfo(torch.half).eps)
    exact = expected(tiny, preprocess.to_tensor(pack.pictures), dtype)
    assert np.allclose(made.features, exact, atol=close, rtol=close)
    again = embeddings.embed(pack, tiny, tmp_path, device=CPU, dtype=dtype)
    assert pack.decoded == 10 and again.key == made.key and np.array_equal(again.features, made.features)
    assert {path.name for path in tmp_path.rglob("[!.]*")} == {made.key, "features.npy", "meta.json"}


def test_mirrored_features_swap_east_and_west(tiny, tmp_path):
    pack = ArrayPack()
    made = embeddings.embed(pack, tiny, tmp_path, mirror=True, device=CPU)
    seen = augment.mirror(preprocess.to_tensor(pack.pictures))
    assert np.allclose(made.mirrored, expected(tiny, seen), atol=2e-2, rtol=2e-2)
    assert not np.allclose(made.mirrored, made.features, atol=2e-2)
    plain = embeddings.embed(pack, tiny, tmp_path, device=CPU)
    assert plain.key == made.key and plain.mirrored is None and pack.decoded == 20


@pytest.mark.parametrize("begun", [False, True])
def test_a_pass_for_all_stages_saves_the_last_layers_features_too(tiny, tmp_path, monkeypatch, begun):
    monkeypatch.setenv("KITLIB_PRECISION", "float32")
    pack, staged = ArrayPack(40), encoders.load("tiny#stages", image_size=24)
    own = embeddings.embed(pack, tiny, tmp_path / "own", mirror=True)
    if begun:  # in several parts, of which one was finished
        assert embeddings.embed_shard(pack, tiny, tmp_path / "staged", 0, 2, mirror=True)
    whole = embeddings.embed(pack, staged, tmp_path / "staged", mirror=True)
    decoded = pack.decoded
    shared = embeddings.embed(pack, tiny, tmp_path / "staged", mirror=True)
    assert pack.decoded == decoded and shared.key == own.key
    assert shared.features.tobytes() == own.features.tobytes() != shared.mirrored.tobytes() == own.mirrored.tobytes()
    assert shared.pictures_per_second == pytest.approx(whole.pictures_per_second)


def test_the_key_follows_everything_that_makes_the_features(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("KITLIB_PRECISION", raising=False)
    other_weights = encoders.load("tiny", image_size=24)
    with torch.no_grad():
        next(other_weights.parameters()).mul_(2)
    packs = [ArrayPack(), ArrayPack(split="test"), ArrayPack(seed=1)]
    keys = [embeddings.embed(pack, tiny, tmp_path, device=CPU).key for pack in packs]
    keys += [embeddings.embed(packs[0], e, tmp_path).key for e in (other_weights, encoders.load("tiny", image_size=32))]
    by_answer = {}
    for answer in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=answer: answer)
        by_answer[answer] = embeddings.embed(packs[0], tiny, tmp_path, device=CPU).key
    assert len(set(keys)) == 5 and by_answer[False] != by_answer[True] and keys[0] in by_answer.values()
    monkeypatch.setenv("KITLIB_PRECISION", "float32")
    assert embeddings.embed(packs[0], tiny, tmp_path, device=CPU).key == by_answer[False]


@pytest.mark.usefixtures("eager")
def test_a_killed_run_goes_on_where_it_was_with_the_same_result(tiny, tmp_path):
    whole = embeddings.embed(ArrayPack(), tiny, tmp_path / "whole", batch_size=3, device=CPU)
    pack = ArrayPack()
    pack.breaks_at = 7
    with pytest.raises(KeyboardInterrupt):
        embeddings.embed(pack, tiny, tmp_path / "killed", batch_size=3, device=CPU)
    assert [path.suffix for path in (tmp_path / "killed").glob("[!.]*")] == [".partial"]
    pack.breaks_at, pack.decoded = 99, 0
    resumed = embeddings.embed(pack, tiny, tmp_path / "killed", batch_size=3, device=CPU)
    assert 4 <= pack.decoded <= 7  # two batches of three were finished, one of them perhaps not yet recorded
    assert np.array_equal(resumed.features, whole.features) and resumed.key == whole.key


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("damage", ["features.npy", "part-0.json", "flipped"])
def test_unfinished_work_that_is_damaged_is_done_again(tiny, tmp_path, damage):
    pack = ArrayPack()
    pack.breaks_at = 7
    with pytest.raises(KeyboardInterrupt):
        embeddings.embed(pack, tiny, tmp_path, batch_size=3, device=CPU)
    (partial,) = tmp_path.glob("*.partial")
    if damage == "flipped":
        flip(partial / "features.npy")
    else:
        (partial / damage).write_bytes(b"[]")
    pack.breaks_at, pack.decoded = 99, 0
    made = embeddings.embed(pack, tiny, tmp_path, batch_size=3, device=CPU)
    assert pack.decoded == 10
    assert np.allclose(made.features, expected(tiny, preprocess.to_tensor(pack.pictures)), atol=2e-2, rtol=2e-2)


def flip(file: Path) -> None:
    """Change a bit of a byte behind the header of an .npy file."""
    with file.open("r+b") as opened:
        opened.seek(5000)
        byte = opened.read(1)[0]
        opened.seek(5000)
        opened.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("damage", ["flipped", "cut", "rows", "old", "meta"])
def test_features_that_are_not_as_they_were_written_are_made_anew(tiny, tmp_path, damage, caplog):
    made = embeddings.embed(pack := ArrayPack(), tiny, tmp_path, device=CPU)
    whole, folder = made.features.copy(), tmp_path / made.key
    file, meta = folder / "features.npy", folder / "meta.json"
    if damage == "flipped":
        flip(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "rows":
        np.save(file, whole[::-1])
    elif damage == "old":  # as an earlier kit wrote them
        meta.write_text(json.dumps({k: v for k, v in json.loads(meta.read_text()).items() if k != "checksum"}))
    else:
        meta.write_bytes(b"\x80")
    again = embeddings.embed(pack, tiny, tmp_path, device=CPU)
    assert np.array_equal(again.features, whole) and pack.decoded == 20
    assert caplog.text.count("they are made anew") == 1
    embeddings.embed(pack, tiny, tmp_path, device=CPU)
    assert pack.decoded == 20


def test_a_full_disk_is_an_error_before_the_first_feature_is_written(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    pack = ArrayPack()
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space .*features\.npy"):
        patch.setattr(os, "posix_fallocate", full)
        embeddings.embed(pack, tiny, tmp_path, device=CPU)
    assert pack.decoded == 0
    embeddings.embed(pack, tiny, tmp_path, device=CPU)
    assert pack.decoded == 10


def test_a_second_process_waits_for_the_features_and_uses_them(tiny, tmp_path, monkeypatch):
    packs, begun = [ArrayPack(), ArrayPack()], threading.Event()
    decode = packs[0].decode

    def slowly(rows, size=None):
        begun.set()
        time.sleep(0.3)
        return decode(rows, size)

    packs[0].decode = slowly
    first = threading.Thread(target=embeddings.embed, args=(packs[0], tiny, tmp_path), kwargs={"device": CPU})
    first.start()
    assert begun.wait(20)
    embeddings.embed(packs[1], encoders.load("tiny", image_size=24), tmp_path, device=CPU)
    first.join()
    assert packs[0].decoded == 10 and packs[1].decoded == 0


def test_features_that_are_not_finite_name_the_place(tiny, tmp_path):
    broken = encoders.load("tiny", image_size=24)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(KitError, match="expected finite features; those of sample_id 100"):
        embeddings.embed(ArrayPack(), broken, tmp_path, device=CPU)
    assert not list(tmp_path.glob("*/meta.json"))


class Loud(encoders.Encoder):
    """Multiplies the features, and overflows under autocast only."""

    def forward(self, pictures):
        features = super().forward(pictures).float() * self.loudness
        return features * float("inf") if torch.is_autocast_enabled("cpu") else features


def test_overflow_under_autocast_is_computed_again_and_large_features_are_clamped(tiny, tmp_path, caplog):
    from kitlib.vision import backbones

    loud = Loud("tiny", *backbones.tiny(24))
    loud.loudness = 1e6
    made = embeddings.embed(ArrayPack(), loud, tmp_path, device=CPU, dtype=torch.bfloat16)
    assert np.isfinite(made.features).all() and made.features.max() == embeddings.LARGEST
    assert "stored as float16's" in caplog.text


def test_pictures_of_several_sizes_come_at_the_encoders(tiny, tmp_path):
    pack = ArrayPack()
    embeddings.embed(pack, tiny, tmp_path / "one", device=CPU)
    assert pack.asked is None
    pack.sizes = [(24, 24), (30, 40)]
    embeddings.embed(pack, tiny, tmp_path / "several", device=CPU)
    assert pack.asked == tiny.preprocess.resize == 24


def test_the_cost_is_told_before_and_the_encoder_is_left_as_it_was(tiny, tmp_path, caplog):
    encoder = encoders.load("tiny", image_size=24).train()
    with caplog.at_level(logging.INFO, logger="kitlib.vision.embeddings"):
        made = embeddings.embed(ArrayPack(), encoder, tmp_path, device=CPU)
    first, last = caplog.messages[0], caplog.messages[-1]
    assert "embedding train with tiny at 24 px" in first and "40 pictures of" in first and "GFLOP" in first
    assert "pictures/s" in last
    assert encoder.training
    meta = json.loads((tmp_path / made.key / "meta.json").read_text())
    assert meta["encoder"] == "tiny" and meta["split"] == "train" and meta["shape"] == [10, 4, tiny.dim]


def test_a_real_pack(tiny, small_sample, home):
    read = readers.read(small_sample)
    pack = pictures.pack(read, "test")
    made = embeddings.embed(pack, tiny, read.derived / "embeddings")
    batch = preprocess.to_tensor(pack.decode(np.arange(20)))
    assert np.allclose(made.features, expected(tiny, batch, device.best_dtype(CPU)), atol=6e-2, rtol=6e-2)
    assert (home / "data/derived").resolve() in (read.derived / "embeddings" / made.key).resolve().parents


@pytest.mark.usefixtures("eager")
def test_shards_fill_one_file_in_any_order_and_whoever_needs_it_completes_it(tiny, tmp_path):
    whole = embeddings.embed(ArrayPack(60), tiny, tmp_path / "whole", batch_size=64, device=CPU)
    missing, decoded = [], []
    for shard in (2, 0, 1):
        pack = ArrayPack(60)
        missing.append(embeddings.embed_shard(pack, tiny, tmp_path / "shards", shard, 3))
        decoded.append(pack.decoded)
    assert missing == [2, 1, 0] and sum(decoded) == 60 and min(decoded) > 8
    assert embeddings.embed_shard(pack, tiny, tmp_path / "shards", 2, 3) == 0  # all is there
    pack = ArrayPack(60)
    merged = embeddings.embed(pack, tiny, tmp_path / "shards", device=CPU)
    assert pack.decoded == 0 and merged.key == whole.key
    assert np.allclose(merged.features, whole.features, atol=2e-2, rtol=2e-2)
    assert {path.name for path in (tmp_path / "shards").rglob("[!.]*")} == {merged.key, "features.npy", "meta.json"}


@pytest.mark.usefixtures("eager")
def test_a_killed_shard_resumes_and_keeps_the_parts_it_was_begun_with(tiny, tmp_path):
    pack = ArrayPack(60)
    pack.breaks_at = 45
    with pytest.raises(KeyboardInterrupt):  # 32 rows of the second half, in batches of 16 at 4 views
        embeddings.embed_shard(pack, tiny, tmp_path, 1, 2)
    (partial,) = tmp_path.glob("*.partial")
    assert json.loads((partial / "parts.json").read_text()) == {"parts": 2}
    pack.breaks_at = 999
    assert embeddings.embed_shard(pack, tiny, tmp_path, 1, 4) == 1  # four shards now, the second part is still theirs
    assert pack.decoded < 45
    embeddings.embed(pack, tiny, tmp_path, device=CPU)
    assert pack.decoded <= 60 + 16


@pytest.mark.usefixtures("eager")
def test_a_damaged_part_of_a_shard_is_found_by_its_own_checksum(tiny, tmp_path):
    embeddings.embed_shard(pack := ArrayPack(60), tiny, tmp_path, 0, 2)
    embeddings.embed_shard(pack, tiny, tmp_path, 1, 2)
    [folder] = [path for path in tmp_path.glob("[!.]*") if path.is_dir()]
    flip(folder / "features.npy")
    embeddings.embed(pack, tiny, tmp_path, device=CPU)
    assert pack.decoded == 120


@pytest.mark.parametrize("shape", [(329_900, 4, 1024), (1000, 4, 96), (7, 1, 5), (1, 4, 1024), (10_001, 3, 777)])
@pytest.mark.parametrize("parts", [1, 2, 7, 64])
def test_no_two_parts_write_to_a_page(shape, parts):
    ranges = [feature_file.rows_of(shape, part, parts) for part in range(parts)]
    assert ranges[0].start == 0 and ranges[-1].stop == shape[0]
    assert all(one.stop == following.start for one, following in pairwise(ranges))
    row = 2 * shape[1] * shape[2]
    assert all(one.start * row % feature_file.PAGE == 0 for one in ranges if one)


@pytest.mark.parametrize(("name", "rows", "columns"), [("centre", (2, 22), (2, 22)), ("bottomless", (0, 22), (1, 23))])
def test_crops_are_cached_apart_and_logged_before(tiny, tmp_path, caplog, name, rows, columns):
    pack, options = ArrayPack(), {"batch_size": 4, "device": CPU, "dtype": torch.float32}
    whole = embeddings.embed(pack, tiny, tmp_path, **options)
    caplog.set_level(logging.INFO)
    made = embeddings.embed(pack, tiny, tmp_path, mirror=True, crop=name, **options)
    assert f"embedding train {name} with tiny" in caplog.text and made.key != whole.key
    cut = preprocess.to_tensor(pack.pictures)[..., slice(*rows), slice(*columns)]
    for features, views in ((made.features, cut), (made.mirrored, augment.mirror(cut))):
        assert np.allclose(features, expected(tiny, views), atol=1e-2, rtol=1e-2)
    again = embeddings.embed(pack, tiny, tmp_path, **options)
    assert again.key == whole.key and np.array_equal(again.features, whole.features)
