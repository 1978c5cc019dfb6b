from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kitlib.core.errors import KitError
from kitlib.vision import encoders


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Four smooth random pictures."""
    noise = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(noise, (256, 256), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def tiny() -> encoders.Encoder:
    return encoders.load("tiny")


def test_tiny_is_the_same_everywhere_and_small(tiny, pictures):
    again = encoders.load("tiny")
    assert again.weights_digest == tiny.weights_digest
    features = tiny(pictures)
    assert torch.equal(features, again(pictures))
    assert features.shape == (4, tiny.dim) and 256 <= tiny.dim <= 768
    assert tiny.gflop < 0.05 and sum(p.numel() for p in tiny.parameters()) < 500_000


def test_loading_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    encoders.load("tiny")
    assert torch.equal(before, torch.get_rng_state())


def test_tiny_needs_neither_timm_nor_transformers():
    program = """if True:
        import sys
        from kitlib.vision import embeddings, encoders
        encoders.load("tiny")
        print(*{"timm", "transformers", "torchvision", "pytorch_lightning"} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_names_hold_no_folders_of_this_machine(tiny):
    for spec, name in (
        ("tiny", "tiny"),
        ("timm:resnet18?a=1@/home/me/w.safetensors", "timm:resnet18?a=1"),
        ("hf:geolocal/StreetCLIP", "hf:geolocal/StreetCLIP"),
        (f"hf:{Path(__file__).parent}", "hf:vision"),
    ):
        named = copy.deepcopy(tiny)
        named.spec = spec
        assert named.name == name


def test_weights_digest_follows_the_weights(tiny):
    changed = copy.deepcopy(tiny)
    assert changed.weights_digest == tiny.weights_digest
    with torch.no_grad():
        next(changed.parameters()).mul_(1.001)
    assert changed.weights_digest != tiny.weights_digest


def test_image_size_changes_the_preprocessing_only(tiny, pictures):
    small = encoders.load("tiny", image_size=64)
    assert small.preprocess.size == 64 and small.gflop < tiny.gflop
    assert small.weights_digest == tiny.weights_digest and small.preprocess.digest != tiny.preprocess.digest
    assert small(pictures).shape == (4, tiny.dim)


def test_layers_hold_every_parameter_once_from_input_to_output(tiny):
    layers = tiny.layers()
    assert len(layers) == len(tiny.blocks) + 2
    assert [id(p) for layer in layers for p in layer] == [id(p) for p in tiny.parameters()]
    assert [id(p) for p in layers[1]] == [id(p) for p in tiny.blocks[0].parameters()]


def test_train_last_freezes_what_comes_before(tiny):
    encoder = copy.deepcopy(tiny)
    kept = encoder.train_last(1)
    assert [all(p.requires_grad for p in block.parameters()) for block in encoder.blocks] == [False, False, True]
    assert [[id(p) for p in group] for group in kept] == [[id(p) for p in encoder.blocks[-1].parameters()]]
    assert len(encoder.train_last(None)) == 3 and all(p.requires_grad for p in encoder.parameters())
    assert encoder.train_last(0) == [] and not any(p.requires_grad for p in encoder.parameters())
    assert len(encoder.train_last(99)) == 3


def test_blocks_survive_a_deep_copy(tiny):
    copied = copy.deepcopy(tiny)
    assert copied.blocks[0] is copied.backbone.blocks[0] is not tiny.blocks[0]


def test_checkpointing_changes_memory_not_gradients(tiny, pictures):
    plain, thrifty = copy.deepcopy(tiny).train(), copy.deepcopy(tiny).train()
    thrifty.enable_checkpointing()
    for encoder in (plain, thrifty):
        encoder(pictures).square().mean().backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert a.grad is not None and torch.allclose(a.grad, b.grad)


@pytest.mark.parametrize("spec", ["", "resnet18", "timm:", "hf:", "tiny:1", "clip:x"])
def test_an_unknown_spec_is_refused_with_what_is_allowed(spec):
    with pytest.raises(KitError, match="expected tiny, timm:NAME"):
        encoders.load(spec)


# timm


def save_timm(folder: Path, name: str, num_classes: int = 7, metadata: dict[str, str] | None = None, **options) -> Path:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **options)
    path = folder / f"{name}.safetensors"
    save_file(model.state_dict(), path, metadata=metadata)
    return path


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "test_resnet"])
def test_timm_weights_from_a_file_give_the_models_own_features(name, tmp_path, pictures):
    import timm
    from safetensors.torch import load_file
    from timm.data import create_transform, resolve_data_config

    path = save_timm(tmp_path, name)
    encoder = encoders.load(f"timm:{name}@{path}")
    model = timm.create_model(name, num_classes=7).eval()
    model.load_state_dict(load_file(path))
    transform = create_transform(**resolve_data_config(model=model))
    theirs = torch.stack([transform(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pictures])
    assert (encoder.preprocess(pictures) - theirs).abs().max() < 2.1 / 255 / 0.224  # two grey levels
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(encoder.preprocess(pictures)), pre_logits=True)
        assert torch.allclose(encoder(pictures), expected, atol=1e-5)
    assert encoder.dim == expected.shape[1] and len(encoder.blocks) >= 4


def test_timm_vit_at_another_size(tmp_path, pictures):
    path = save_timm(tmp_path, "test_vit")
    encoder = encoders.load(f"timm:test_vit@{path}", image_size=96)
    assert encoder.preprocess.size == 96 and encoder(pictures).shape == (4, 64)


def test_timm_options_and_notes_in_the_file(tmp_path, pictures):
    notes = {"create_kwargs": "pad_type=same", "norm": "mean=0.5 std=0.25"}
    path = save_timm(tmp_path, "test_efficientnet", metadata=notes, pad_type="same")
    noted = encoders.load(f"timm:test_efficientnet@{path}")
    assert noted.preprocess.mean == (0.5,) * 3 and noted.preprocess.std == (0.25,) * 3
    said = encoders.load(f"timm:test_efficientnet?pad_type=same@{path}")
    other = encoders.load(f"timm:test_efficientnet?pad_type=@{path}")
    assert torch.equal(noted(pictures), said(pictures))
    assert not torch.allclose(noted(pictures), other(pictures))
    with pytest.raises(KitError, match="no_such_option"):
        encoders.load(f"timm:test_efficientnet?no_such_option=1@{path}")
    with pytest.raises(KitError, match="expected option=value, joined by &; got 'pad_type'"):
        encoders.load(f"timm:test_efficientnet?pad_type@{path}")


def test_timm_weights_that_do_not_fit_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_timm(tmp_path, "test_resnet")
    with pytest.raises(KitError, match=r"78 missing \(blocks\.0.* 92 unknown \(bn1"):
        encoders.load(f"timm:test_vit@{path}")
    state = load_file(path)
    state["conv1.0.weight"] = torch.zeros(1)
    del state["layer4.0.conv1.weight"]
    save_file(state, path)
    with pytest.raises(KitError, match=r"1 missing \(layer4.0.conv1.weight\), 1 of another shape \(conv1.0.weight\)"):
        encoders.load(f"timm:test_resnet@{path}")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(KitError, match=r"cannot be read as weights: expected a whole .safetensors"):
        encoders.load(f"timm:test_resnet@{path}")
    with pytest.raises(KitError, match=r"no weights found; looked for .*nowhere"):
        encoders.load("timm:test_resnet@nowhere")
    with pytest.raises(KitError, match=r"expected a model of timm, such as .*resnet.*got 'resnet19'"):
        encoders.load("timm:resnet19")


def test_timm_without_internet_says_what_to_do(monkeypatch):
    import timm

    def refuse(*args, **kwargs):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(KitError, match=r"could not be loaded \(OSError: no route to host\); without the internet"):
        encoders.load("timm:test_vit")


def test_batch_norms_stay_frozen_unless_asked(tmp_path, pictures):
    encoder = encoders.load(f"timm:test_resnet@{save_timm(tmp_path, 'test_resnet')}").train()
    mean = encoder.backbone.bn1.running_mean.clone()
    encoder(pictures)
    assert torch.equal(encoder.backbone.bn1.running_mean, mean) and encoder.backbone.layer1.training
    encoder.freeze_batch_norm = False
    encoder.train()(pictures)
    assert not torch.equal(encoder.backbone.bn1.running_mean, mean)


# Hugging Face folders


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A whole CLIP model, vision and text, in the layout of geolocal/StreetCLIP: 336 px, patches of 14."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("StreetCLIP")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = tower | {"image_size": 336, "patch_size": 14, "projection_dim": 24}
    text = tower | {"vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 24}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(folder)
    return folder


def test_streetclip_layout_from_disk(clip, pictures):
    from transformers import AutoImageProcessor, CLIPModel

    encoder = encoders.load(f"hf:{clip}")
    assert encoder.dim == 32 and encoder.preprocess.size == 336 and len(encoder.blocks) == 3
    assert not any("text" in name for name in encoder.state_dict())
    whole, processor = CLIPModel.from_pretrained(clip).eval(), AutoImageProcessor.from_pretrained(clip)
    theirs = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    assert (encoder.preprocess(pictures) - theirs).abs().max() < 1e-6
    with torch.inference_mode():
        pooled = whole.vision_model(pixel_values=theirs).pooler_output
        assert torch.allclose(encoder(pictures), pooled, atol=1e-5)


def test_clip_at_another_size_interpolates_positions(clip, pictures):
    small = encoders.load(f"hf:{clip}", image_size=252)
    assert small.preprocess.size == small.preprocess.resize == 252 and small.gflop < encoders.load(f"hf:{clip}").gflop
    full, less = encoders.load(f"hf:{clip}")(pictures), small(pictures)
    assert less.shape == full.shape
    assert torch.nn.functional.cosine_similarity(less, full).min() > 0.9
    with pytest.raises(KitError, match=r"image_size: .* takes multiples of its 14 px patch"):
        encoders.load(f"hf:{clip}", image_size=250)


def test_clip_fine_tunes_its_last_block_with_checkpointing(clip, pictures):
    encoder = encoders.load(f"hf:{clip}", image_size=56).train()
    encoder.enable_checkpointing()
    encoder.train_last(1)
    encoder(pictures).square().sum().backward()
    assert [next(block.parameters()).grad is not None for block in encoder.blocks] == [False, False, True]


def test_older_preprocessor_files_give_one_number_for_a_size(clip, tmp_path):
    import json
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(clip, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["image_processor_type"]
    settings |= {"size": 336, "crop_size": 336, "feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert encoders.load(f"hf:{folder}").preprocess == encoders.load(f"hf:{clip}").preprocess


def save_tower(folder: Path, kind: str) -> Path:
    import transformers

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    image = size | {"image_size": 56, "patch_size": 14}
    torch.manual_seed(0)
    if kind == "siglip":
        text = size | {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = transformers.SiglipConfig(text_config=text, vision_config=image)
        transformers.SiglipModel(config).save_pretrained(folder)
        transformers.SiglipImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)
    elif kind == "dinov2":
        transformers.Dinov2Model(transformers.Dinov2Config(**image)).save_pretrained(folder)
        processor = transformers.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
        processor.save_pretrained(folder)
    else:
        transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**image)).save_pretrained(folder)
        transformers.DINOv3ViTImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["siglip", "dinov2", "dinov3"])
def test_other_towers_agree_with_the_library(kind, tmp_path, pictures):
    from transformers import AutoImageProcessor, AutoModel

    folder = save_tower(tmp_path, kind)
    encoder = encoders.load(f"hf:{folder}")
    theirs = AutoImageProcessor.from_pretrained(folder)(images=list(pictures), return_tensors="pt")["pixel_values"]
    # DINOv3's processor resizes floats, ours rounds to grey levels like all others
    assert (encoder.preprocess(pictures) - theirs).abs().max() < (0.03 if kind == "dinov3" else 1e-6)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        pixels = encoder.preprocess(pictures)
        whole = model.vision_model if kind == "siglip" else model
        assert torch.allclose(encoder(pictures), whole(pixel_values=pixels).pooler_output, atol=1e-5)
        assert encoders.load(f"hf:{folder}", image_size=84)(pictures).shape == (4, 32)
    assert len(encoder.blocks) == 3 and all(encoder.layers())
    encoder.train_last(None)
    encoder.train()(pictures).square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)  # or DDP would refuse to train


def test_weights_that_are_a_pickle_run_no_code(clip, tmp_path):
    import shutil

    shutil.copytree(clip, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    code = f"cposix\nmkdir\n(S'{tmp_path}/ran'\ntR.".encode()
    (tmp_path / "clip" / "pytorch_model.bin").write_bytes(code)
    (tmp_path / "weights.pth").write_bytes(code)
    for spec in (f"hf:{tmp_path}/clip", f"timm:resnet18@{tmp_path}/weights.pth"):
        with pytest.raises(KitError, match=r"could not be loaded|cannot be read as weights"):
            encoders.load(spec)
    assert not (tmp_path / "ran").exists()


def test_folders_that_do_not_hold_an_encoder(clip, tmp_path):
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    with pytest.raises(KitError, match=r"no folder found; looked for .*/no/where"):
        encoders.load("hf:/no/where")
    with pytest.raises(KitError, match="could not be loaded"):
        encoders.load(f"hf:{tmp_path}")
    folder = tmp_path / "broken"
    shutil.copytree(clip, folder)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    del state["vision_model.post_layernorm.weight"]
    state["vision_model.embeddings.class_embedding"] = torch.zeros(5)
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(KitError, match=r"2 weights are missing or of another shape .*class_.*post_layernorm.weight"):
        encoders.load(f"hf:{folder}")
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(KitError, match="could not be loaded"):
        encoders.load(f"hf:{folder}")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(KitError, match=r"expected one of clip.*; got a 'bert'"):
        encoders.load(f"hf:{folder}")


def test_real_weights_know_real_photographs(real_us):
    weights = real_us.parents[2] / "weights/mobilenetv2_100_tf2_ptq_in1k"
    if not weights.is_dir():
        pytest.skip("the pretrained encoder (shared/weights) is not at hand")
    encoder = encoders.load(f"timm:mobilenetv2_100@{weights}")
    assert encoder.dim == 1280 and encoder.preprocess.mean == (0.5,) * 3 and encoder.preprocess.size == 224
    assert 0.55 < encoder.gflop < 0.65  # published: 300 M multiply-adds
    names = [f"train_images/img_{place:06d}_{view}.jpg" for place in range(20) for view in ("north", "south")]
    pictures = np.stack([np.asarray(Image.open(real_us / name)) for name in names])
    with torch.inference_mode():
        features = encoder(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    alike = torch.nn.functional.cosine_similarity(features[0::2, None], features[None, 1::2], dim=-1)
    rank = (alike > alike.diag()[:, None]).sum(dim=1).float()  # of a place's own south among all, by its north
    assert rank.mean() < 7  # by chance 9.5
