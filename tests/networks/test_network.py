"""Backbones carry torchvision's names, give four stages each, and refuse weights that do not fit."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from geokr_core.errors import BackboneError
from geokr_core.networks.architectures import STAGE_CHANNELS, depth_of, feature_dim
from geokr_core.networks.network import build, pooled, stages
from geokr_core.networks.weights import imagenet_weights, load_initial_weights, load_weights, save_weights

ARCHITECTURES = tuple(STAGE_CHANNELS)


def _upstream_keys(architecture: str) -> set[str]:
    with torch.device("meta"):
        if architecture.startswith("vit"):
            keys = timm.create_model(architecture, pretrained=False).state_dict()
        else:
            keys = getattr(torchvision.models, architecture)(weights=None).state_dict()
    return {key for key in keys if not key.startswith(("fc.", "classifier.", "head."))}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_are_the_upstreams_without_the_classifier(architecture: str) -> None:
    with torch.device("meta"):
        module = build(architecture)
    assert set(module.state_dict()) == _upstream_keys(architecture)


@pytest.mark.parametrize("architecture", ["resnet34", "convnext_tiny", "swin_t", "vit_small_patch16_224"])
def test_stages_features_and_depths_agree(architecture: str) -> None:
    torch.manual_seed(0)
    module = build(architecture, 5).eval()
    images = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        maps, features, called = stages(module, images), pooled(module, images), module(images)
    assert tuple(m.shape[1] for m in maps) == STAGE_CHANNELS[architecture]
    torch.testing.assert_close(features, called, atol=1e-5, rtol=1e-5)
    assert features.shape == (1, feature_dim(architecture))
    depths = [depth_of(architecture, key) for key, _ in module.named_parameters()]
    assert set(depths) == {0, 1, 2, 3, 4}
    assert depths[-1] == 4


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


def test_imagenet_weights_come_from_the_cache_and_are_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(BackboneError, match=r"nothing is downloaded.*initial_weights"):
        imagenet_weights("resnet18")
    (tmp_path / "checkpoints").mkdir()
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "checkpoints" / name)
    load_initial_weights(build("resnet18"), "imagenet", "resnet18", ("red", "green", "blue"))
    with pytest.raises(BackboneError, match="has no weights for vit_small"):
        imagenet_weights("vit_small_patch16_224")


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


def test_images_that_pooling_would_swallow_are_refused() -> None:
    with pytest.raises(BackboneError, match="16 x 16 px are too small for SqueezeNet, which needs 17 px"):
        pooled(build("squeezenet1_1"), torch.zeros(1, 3, 16, 16))


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"alexnet.*choose one of resnet18"):
        build("alexnet")
