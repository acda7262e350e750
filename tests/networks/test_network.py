"""Backbones carry torchvision's names, give four stages each, and refuse weights that do not fit."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from geokr_core.errors import BackboneError
from geokr_core.networks.architectures import ARCHITECTURES, feature_dim, spec_of
from geokr_core.networks.network import build, depths, pooled, stages
from geokr_core.networks.weights import (
    imagenet_weights,
    load_initial_weights,
    load_weights,
    require_unchanged,
    save_weights,
)
from geokr_core.step.digests import file_md5, sha256


def _upstream_keys(architecture: str) -> set[str]:
    with torch.device("meta"):
        if spec_of(architecture).libraries[0] == "timm":
            keys = timm.create_model(architecture, pretrained=False).state_dict()
        else:
            keys = getattr(torchvision.models, architecture)(weights=None).state_dict()
    return {key for key in keys if not key.startswith(("fc.", "classifier.", "head.", "conv_head.", "bn2."))}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_are_the_upstreams_without_the_classifier(architecture: str) -> None:
    with torch.device("meta"):
        module = build(architecture)
    assert set(module.state_dict()) == _upstream_keys(architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stages_features_strides_and_depths_are_those_of_the_table(architecture: str) -> None:
    torch.manual_seed(0)
    spec = spec_of(architecture)
    module = build(architecture, 5).eval()
    images = torch.randn(1, 5, 64, 96)
    with torch.inference_mode():
        maps, features, called = stages(module, images), pooled(module, images), module(images)
    assert tuple(m.shape[1] for m in maps) == spec.stage_channels
    for found, stage in zip(maps, spec.stages, strict=True):
        # SqueezeNet convolves without padding and comes out a cell short.
        assert 0 <= 64 // stage.stride - found.shape[2] <= 1
        assert 0 <= 96 // stage.stride - found.shape[3] <= 1
    torch.testing.assert_close(features, called, atol=1e-5, rtol=1e-5)
    assert features.shape == (1, feature_dim(architecture))
    found_depths = list(depths(module).values())
    assert set(found_depths) == {0, 1, 2, 3, 4}
    assert found_depths[-1] == 4
    assert found_depths[list(depths(module)).index(f"{spec.first_layer}.weight")] == 0


@pytest.mark.parametrize(
    ("architecture", "key", "depth"),
    [
        ("resnet18", "bn1.weight", 0),
        ("resnet18", "layer3.0.downsample.0.weight", 3),
        ("vgg16_bn", "features.1.weight", 1),
        ("vgg16_bn", "features.14.weight", 2),
        ("swin_t", "features.6.reduction.weight", 4),
        ("swin_t", "norm.bias", 4),
        ("vit_small_patch16_224", "pos_embed", 0),
        ("vit_small_patch16_224", "blocks.2.mlp.fc2.bias", 1),
        ("vit_small_patch16_224", "norm.weight", 4),
        ("tf_efficientnet_lite0", "blocks.3.0.conv_pw.weight", 3),
    ],
)
def test_depth_is_the_stage_that_a_parameter_leads_to(architecture: str, key: str, depth: int) -> None:
    with torch.device("meta"):
        assert depths(build(architecture))[key] == depth


def test_copies_of_a_network_keep_their_stages() -> None:
    network = build("squeezenet1_1").eval()
    images = torch.randn(1, 3, 32, 32)
    copied = copy.deepcopy(network)
    assert all(torch.equal(a, b) for a, b in zip(stages(copied, images), stages(network, images), strict=True))
    assert list(copied.state_dict()) == list(network.state_dict())


def test_the_vision_transformer_is_timms_at_its_own_size() -> None:
    torch.manual_seed(0)
    ours = build("vit_small_patch16_224").eval()
    theirs = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0, global_pool="").eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images)[:, 1:].mean(dim=1), atol=1e-5, rtol=1e-5)


# --- weights to start from --------------------------------------------------------------------------------------------


def _rgb_weights(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    torch.manual_seed(0)
    source = torchvision.models.squeezenet1_1(weights=None)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth", source.features[0].weight.detach()


@pytest.mark.parametrize("bands", [("red", "green", "blue"), ("blue", "green", "red")])
def test_filters_go_to_the_band_of_their_name(bands: tuple[str, ...], tmp_path: Path) -> None:
    path, filters = _rgb_weights(tmp_path)
    module = build("squeezenet1_1")
    load_initial_weights(module, path, "squeezenet1_1", bands)
    order = [("red", "green", "blue").index(band) for band in bands]
    assert torch.equal(module.features[0].weight, filters[:, order])


def test_bands_without_filters_get_the_mean_and_the_sum_over_bands_is_kept(tmp_path: Path) -> None:
    path, filters = _rgb_weights(tmp_path)
    module = build("squeezenet1_1", 4)
    load_initial_weights(module, path, "squeezenet1_1", ("blue", "green", "red", "nir"))
    new = module.features[0].weight
    torch.testing.assert_close(new[:, 0], filters[:, 2] * 0.75)
    torch.testing.assert_close(new[:, 3], filters.mean(dim=1) * 0.75)
    torch.testing.assert_close(new.sum(dim=1), filters.sum(dim=1))


@pytest.mark.parametrize("theirs", [("blue", "green", "red"), ("nir", "swir1", "red"), ("green", "red", "nir", "blue")])
def test_weights_that_name_their_bands_are_read_by_these_names(theirs: tuple[str, ...], tmp_path: Path) -> None:
    ours = ("red", "nir", "blue")
    source, module = build("squeezenet1_1", len(theirs)), build("squeezenet1_1", 3)
    save_weights(source, tmp_path / "w.safetensors", theirs)
    load_initial_weights(module, tmp_path / "w.safetensors", "squeezenet1_1", ours)
    filters = source.features[0].weight * len(theirs) / len(ours)
    for place, band in enumerate(ours):
        wanted = filters[:, theirs.index(band)] if band in theirs else filters.mean(dim=1)
        torch.testing.assert_close(module.features[0].weight[:, place], wanted)


def test_weights_for_the_same_bands_are_taken_as_they_are(tmp_path: Path) -> None:
    bands, source = ("ndvi04", "ndvi07", "ndvi10"), build("squeezenet1_1")
    save_weights(source, tmp_path / "w.safetensors", bands)
    module = build("squeezenet1_1")
    load_initial_weights(module, tmp_path / "w.safetensors", "squeezenet1_1", bands)
    assert torch.equal(module.features[0].weight, source.features[0].weight)


def _published(folder: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights in torch's cache, drawn at random, under a name with their digest as published files have."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    path = folder / "checkpoints" / "drawn.pth"
    path.parent.mkdir()
    torch.save(getattr(torchvision.models, architecture)(weights=None).state_dict(), path)
    path = path.rename(path.with_stem(f"{architecture}-{sha256(path)[:8]}"))
    spec = spec_of(architecture)
    row = replace(spec, imagenet=replace(spec.imagenet, file=path.name))
    monkeypatch.setitem(ARCHITECTURES, architecture, row)  # type: ignore[arg-type]
    return path


def test_imagenet_weights_come_from_the_cache_and_are_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _published(tmp_path, "resnet18", monkeypatch)
    module = build("resnet18")
    load_initial_weights(module, "imagenet", "resnet18", ("red", "green", "blue"))
    assert torch.equal(module.conv1.weight, torch.load(path)["conv1.weight"])
    path.unlink()
    with pytest.raises(BackboneError, match=r"nothing is downloaded.*initial_weights"):
        imagenet_weights("resnet18")
    with pytest.raises(BackboneError, match="no published ImageNet weights that vit_small"):
        imagenet_weights("vit_small_patch16_224")


def test_published_weights_that_are_not_what_their_name_says_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _published(tmp_path, "squeezenet1_1", monkeypatch)
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BackboneError, match="damaged or another file: its SHA-256 begins with"):
        imagenet_weights("squeezenet1_1")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_published_weights_and_their_preprocessing_are_the_librarys_own(architecture: str) -> None:
    published = spec_of(architecture).imagenet
    if spec_of(architecture).libraries[0] == "torchvision":
        theirs = torchvision.models.get_model_weights(architecture).DEFAULT
        assert published.file == theirs.url.rpartition("/")[2]
        assert (published.mean, published.std) == (tuple(theirs.transforms().mean), tuple(theirs.transforms().std))
    else:
        card = timm.get_pretrained_cfg(architecture)
        assert published.file in (None, card.url.rpartition("/")[2])
        assert (published.mean, published.std) == (card.mean, card.std)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "squeezenet1_1"])
def test_features_are_those_that_torchvision_pools(architecture: str) -> None:
    torch.manual_seed(0)
    module = build(architecture).eval()
    whole = getattr(torchvision.models, architecture)(weights=None).eval()
    missing = whole.load_state_dict(module.state_dict(), strict=False)
    assert not missing.unexpected_keys
    images = torch.randn(2, 3, 64, 64)
    seen: list[torch.Tensor] = []
    if architecture.startswith("resnet"):
        whole.avgpool.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten(1)))
    else:
        whole.features.register_forward_hook(lambda module, inputs, output: seen.append(output.mean(dim=(2, 3))))
    with torch.no_grad():
        whole(images)
        torch.testing.assert_close(pooled(module, images), seen[0])
        torch.testing.assert_close(module(images), seen[0])


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("resnet18", (16, 8, 4, 2)),
        ("resnet50", (16, 8, 4, 2)),
        ("vgg16_bn", (16, 8, 4, 2)),
        ("squeezenet1_1", (15, 7, 3, 3)),
    ],
)
def test_four_stages_and_their_widths(architecture: str, sizes: tuple[int, ...]) -> None:
    with torch.device("meta"):
        module = build(architecture, in_channels=4)
        images = torch.empty(2, 4, 64, 64)
        maps = stages(module, images)
        last, multi = pooled(module, images), pooled(module, images, "multi")
    assert [m.shape[2:] for m in maps] == [(size, size) for size in sizes]
    assert last.shape == (2, feature_dim(architecture)) == (2, maps[-1].shape[1])
    assert multi.shape == (2, feature_dim(architecture, "multi")) == (2, sum(m.shape[1] for m in maps))


def test_multi_ends_with_the_last_stage() -> None:
    module, images = build("squeezenet1_1").eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(pooled(module, images, "multi")[:, -512:], pooled(module, images, "last"))


def test_more_bands_change_the_first_convolution_alone() -> None:
    with torch.device("meta"):
        plain, wide = build("resnet18").state_dict(), build("resnet18", in_channels=4).state_dict()
    assert [key for key in plain if plain[key].shape != wide[key].shape] == ["conv1.weight"]
    assert wide["conv1.weight"].shape == (64, 4, 7, 7)


def test_first_convolution_for_more_bands_is_initialised_as_torchvisions() -> None:
    torch.manual_seed(0)
    spread = build("resnet18", in_channels=6).state_dict()["conv1.weight"].std()
    assert spread == pytest.approx((2 / (64 * 7 * 7)) ** 0.5, rel=0.05)  # kaiming, fan out


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_weights_survive_the_file_and_give_the_same_bytes(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # channels_last tensors are not contiguous, which safetensors refuses unless they are put in plain order.
    module = build(architecture).to(memory_format=torch.channels_last)
    save_weights(module, tmp_path / "a.safetensors")
    other = build(architecture)
    load_weights(other, tmp_path / "a.safetensors")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in module.state_dict().items())
    save_weights(other, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_are_written_as_float32(tmp_path: Path) -> None:
    save_weights(build("squeezenet1_1").to(torch.bfloat16), tmp_path / "w.safetensors")
    assert {value.dtype for value in load_file(tmp_path / "w.safetensors").values()} == {torch.float32}


def test_a_missing_key_is_refused_by_name(tmp_path: Path) -> None:
    state = build("squeezenet1_1").state_dict()
    del state["features.0.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"1 key\(s\) missing, such as features.0.weight"):
        load_weights(build("squeezenet1_1"), tmp_path / "w.safetensors")


def test_a_classifier_is_refused_unless_it_may_be_dropped(tmp_path: Path) -> None:
    state = build("resnet18").state_dict() | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="belong to a classifier"):
        load_weights(build("resnet18"), tmp_path / "w.safetensors")
    module = build("resnet18")
    load_weights(module, tmp_path / "w.safetensors", drop_classifier=True)
    assert torch.equal(module.state_dict()["conv1.weight"], state["conv1.weight"])


def test_weights_for_other_bands_are_refused_with_the_reason(tmp_path: Path) -> None:
    save_weights(build("resnet18"), tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="for 3 bands and the data has 4"):
        load_weights(build("resnet18", in_channels=4), tmp_path / "w.safetensors")


def test_torchvisions_own_file_format_is_read(tmp_path: Path) -> None:
    source = build("squeezenet1_1")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    target = build("squeezenet1_1")
    load_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.state_dict()["features.0.weight"], source.state_dict()["features.0.weight"])


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("trap-was-sprung"),))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": _Trap()}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="more than plain tensors"):
        load_weights(build("squeezenet1_1"), tmp_path / "w.pth")
    assert not Path("trap-was-sprung").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_damaged_or_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such weights file"):
        load_weights(build("squeezenet1_1"), tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(BackboneError, match=name):
        load_weights(build("squeezenet1_1"), tmp_path / name)


def test_a_file_that_changed_since_it_was_recorded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(build("squeezenet1_1"), path)
    recorded = file_md5(path)
    require_unchanged(path, recorded)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # one bit of a weight: still a readable file that fits
    path.write_bytes(content)
    load_weights(build("squeezenet1_1"), path)
    with pytest.raises(BackboneError, match=r"w.safetensors: damaged or replaced .*geokr pretrain --force"):
        require_unchanged(path, recorded)


def test_images_that_pooling_would_swallow_are_refused() -> None:
    with pytest.raises(BackboneError, match="16 x 16 px are too small for squeezenet1_1, which needs 17 px"):
        pooled(build("squeezenet1_1"), torch.zeros(1, 3, 16, 16))
