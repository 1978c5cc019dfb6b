from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kitlib.core.errors import KitError
from kitlib.vision import augment
from kitlib.vision import device as vision_device
from kitlib.vision import preprocess as views
from kitlib.vision.preprocess import Preprocess, ViewBatches

CPU = torch.device("cpu")


class ArrayPack:
    """Decodes from memory; remembers what was asked for."""

    def __init__(self, n: int, size: int = 8) -> None:
        self.pictures = np.random.default_rng(0).integers(0, 256, (n, 4, size, size, 3), dtype=np.uint8)
        self.asked: list[int] = []

    def decode(self, rows, size=None):
        self.asked += list(rows)
        return self.pictures[rows]


@pytest.fixture
def places() -> torch.Tensor:
    return views.to_tensor(ArrayPack(6, 20).pictures)


def test_to_tensor_moves_channels_without_copying():
    decoded = np.arange(2 * 4 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 4, 3, 5, 3)
    tensor = views.to_tensor(decoded)
    assert tensor.shape == (2, 4, 3, 3, 5) and tensor.dtype == torch.uint8
    assert tensor[1, 2, 0, 1, 4] == decoded[1, 2, 1, 4, 0]
    assert tensor.data_ptr() == decoded.ctypes.data


def test_mirror_flips_and_swaps_east_and_west(places):
    seen = augment.mirror(places)
    north, east, south, west = range(4)
    for view, source in ((north, north), (east, west), (south, south), (west, east)):
        assert torch.equal(seen[:, view], places[:, source].flip(-1))
    assert torch.equal(augment.mirror(seen), places)
    assert torch.equal(augment.mirror(places[:, :1]), places[:, :1].flip(-1))


def test_view_batches_cover_the_rows_in_order():
    pack = ArrayPack(7)
    rows = np.array([6, 1, 0, 5, 3])
    batches = ViewBatches(pack, rows, batch_size=2)
    got = list(batches)
    assert len(batches) == len(got) == 3
    assert np.concatenate([r for r, _ in got]).tolist() == rows.tolist() == pack.asked
    assert torch.equal(torch.cat([v for _, v in got]), views.to_tensor(pack.pictures[rows]))
    assert list(ViewBatches(pack, np.array([], int), 2)) == []


def test_view_batches_decode_one_batch_ahead():
    pack = ArrayPack(6)
    iterator = iter(ViewBatches(pack, np.arange(6), batch_size=2))
    next(iterator)
    iterator.close()  # waits for the batch that is under way
    assert pack.asked == [0, 1, 2, 3]


def test_view_batches_pass_on_errors():
    def decode(rows, size=None):
        raise KitError("no such picture")

    with pytest.raises(KitError, match="no such picture"):
        list(ViewBatches(SimpleNamespace(decode=decode), np.arange(3), 2))
    with pytest.raises(KitError, match="batch_size: expected a whole number from 1; got 0"):
        ViewBatches(ArrayPack(1), np.arange(1), 0)


def test_augment_without_strength_changes_nothing(places):
    same = augment.augment(places, torch.Generator().manual_seed(0), mirrored=0, light=0, zoom=0)
    assert torch.equal(same, places)
    mirrored = augment.augment(places, torch.Generator().manual_seed(0), mirrored=1, light=0, zoom=0)
    assert torch.equal(mirrored, augment.mirror(places))


def test_a_share_of_pictures_is_blotted_out_by_a_rectangle_of_their_mean_colour():
    pictures = torch.randint(1, 256, (200, 4, 3, 40, 60), dtype=torch.uint8)
    seen = augment.erase(pictures, torch.Generator().manual_seed(0), 0.25)
    changed = (seen != pictures).any(2)  # (B, V, H, W)
    blotted = changed.any(-1).any(-1)
    assert blotted.float().mean() == pytest.approx(0.25, abs=0.05)
    area, rows, columns = changed.sum((-2, -1)), changed.any(-1).sum(-1), changed.any(-2).sum(-1)
    assert (area[blotted] >= 0.95 * (rows * columns)[blotted]).all()  # a pixel may have the mean colour already
    share = area[blotted] / (40 * 60)
    assert share.min() > 0.01 and 0.28 < share.max() < 0.36 and share.mean() == pytest.approx(0.176, abs=0.02)
    b, v = blotted.nonzero()[0].tolist()
    colour = pictures[b, v].float().mean((-2, -1)).to(torch.uint8)
    assert (colour == seen[b, v][:, changed[b, v]].T).all()
    again = augment.erase(pictures, torch.Generator().manual_seed(0), 0.25)
    assert torch.equal(again, seen)


def test_augment_depends_on_the_generator_only(places):
    def variant(seed: int) -> torch.Tensor:
        return augment.augment(places, torch.Generator().manual_seed(seed))

    assert torch.equal(variant(3), variant(3))
    assert variant(3).dtype == torch.uint8
    assert variant(3).shape != variant(4).shape or not torch.equal(variant(3), variant(4))


def test_augment_mirrors_about_the_asked_share_of_places():
    places = torch.zeros(400, 4, 3, 2, 2, dtype=torch.uint8)
    places[..., 0] = 255
    seen = augment.augment(places, torch.Generator().manual_seed(0), mirrored=0.25, light=0, zoom=0)
    assert 0.18 < (seen[..., 1] == 255).flatten(1).all(1).float().mean() < 0.32


def test_augment_changes_light_within_bounds_and_the_same_for_all_views():
    places = torch.full((50, 4, 3, 4, 4), 100, dtype=torch.uint8)
    seen = augment.augment(places, torch.Generator().manual_seed(0), mirrored=0, light=0.2, zoom=0)
    assert seen.float().amin() >= 79 and seen.float().amax() <= 121
    assert (seen == seen[:, :1, :1, :1, :1]).all()  # a grey place stays grey, and its views alike
    assert len(seen[:, 0, 0, 0, 0].unique()) > 20


def test_augment_zoom_cuts_a_window_of_bounded_size(places):
    sizes = {
        augment.augment(places, torch.Generator().manual_seed(seed), mirrored=0, light=0, zoom=0.3).shape[-1]
        for seed in range(20)
    }
    assert min(sizes) >= 14 and max(sizes) <= 20 and len(sizes) > 3


def test_preprocess_of_a_constant_picture_has_a_known_answer():
    preprocess = Preprocess(size=6, resize=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    pixels = preprocess(torch.full((2, 3, 16, 16), 255, dtype=torch.uint8))
    assert pixels.shape == (2, 3, 6, 6) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([1.0, 3.0, 1.0]))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 61), (53, 40), (24, 24), (20, 33)])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocess_equals_torchvision_on_pil(height, width, squash, interpolation):
    from PIL import Image
    from torchvision.transforms import v2

    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)
    theirs = v2.Compose(
        [
            v2.Resize((24, 24) if squash else 24, interpolation=v2.InterpolationMode(interpolation)),
            v2.CenterCrop(20),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )(Image.fromarray(picture))
    ours = Preprocess(20, 24, mean, std, interpolation, squash)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    one_grey_level = 1 / 255 / min(std)
    assert (ours(tensor)[0] - theirs).abs().max() < 1.01 * one_grey_level
    assert (ours(tensor)[0] - theirs).abs().mean() < 0.05 * one_grey_level


def test_preprocess_on_a_device_rounds_as_pil_does():
    pictures = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    on_cpu = views._resize(pictures, [56, 56], "bicubic").float()
    on_device = views._resize_float(pictures, [56, 56], "bicubic").float()
    assert (on_cpu - on_device).abs().max() <= 1 and (on_cpu != on_device).float().mean() < 0.05


def test_shrink_does_a_part_of_the_work_before():
    pictures = torch.randint(0, 256, (2, 4, 3, 40, 60), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    preprocess = Preprocess(size=20, resize=24)
    less = preprocess.shrink(pictures)
    assert less.shape == (2, 4, 3, 24, 36) and less.dtype == torch.uint8
    assert torch.equal(preprocess(less.flatten(0, 1)), preprocess(pictures.flatten(0, 1)))
    assert Preprocess(size=20, resize=41).shrink(pictures) is pictures


def test_preprocess_digest_and_sizes():
    preprocess = Preprocess(size=224, resize=256)
    assert preprocess.digest == Preprocess(size=224, resize=256).digest != Preprocess(size=224, resize=255).digest
    assert preprocess.at(112) == Preprocess(size=112, resize=128)
    assert preprocess.at(224) == preprocess
    with pytest.raises(KitError, match="interpolation: expected bicubic or bilinear"):
        Preprocess(size=8, resize=8, interpolation="lanczos")
    with pytest.raises(KitError, match="size: expected 1 to"):
        Preprocess(size=9, resize=8)


def test_best_device_obeys_the_environment(monkeypatch):
    monkeypatch.setenv("KITLIB_DEVICE", "cpu")
    assert vision_device.best_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("KITLIB_DEVICE", "mps")
    with pytest.raises(KitError, match=r"KITLIB_DEVICE: .*got 'mps'"):
        vision_device.best_device()


@pytest.mark.parametrize(("has_bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(has_bf16, dtype, monkeypatch):
    monkeypatch.delenv("KITLIB_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert vision_device.best_dtype(CPU) == dtype
    assert vision_device.autocast(CPU, vision_device.best_dtype(CPU))._enabled == has_bf16


def test_the_named_number_type_holds_on_every_device(monkeypatch):
    for name in ("float32", "bfloat16", "float16"):
        monkeypatch.setenv("KITLIB_PRECISION", name)
        assert vision_device.precision_of(vision_device.best_dtype(torch.device("cuda"))) == name
    with pytest.raises(KitError, match=r"KITLIB_PRECISION: expected float32, bfloat16 or auto on a CPU; got float16"):
        vision_device.best_dtype(CPU)
    monkeypatch.setenv("KITLIB_PRECISION", "half")
    with pytest.raises(KitError, match="expected one of auto, float32, bfloat16, float16; got 'half'"):
        vision_device.best_dtype(CPU)


def test_a_run_computes_in_the_number_type_that_it_was_started_in(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.delenv("KITLIB_PRECISION", raising=False)
    assert vision_device.dtype_of({"precision": "bfloat16"}, CPU) == torch.bfloat16
    assert vision_device.dtype_of({}, CPU) == torch.float32  # a run of an earlier kit
    half = {"precision": "float16"}
    assert vision_device.dtype_of(half, torch.device("cuda")) == torch.float16 and not caplog.text
    assert vision_device.dtype_of(half, CPU) == torch.float32 and "float32 replaces it" in caplog.text


def test_a_t4_computes_in_float16_and_newer_gpus_in_bfloat16(monkeypatch):
    monkeypatch.delenv("KITLIB_PRECISION", raising=False)
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert vision_device.best_dtype(torch.device("cuda")) == dtype
    assert vision_device.best_dtype(torch.device("mps")) == torch.float32
