"""Images of any kind become what the training made of its chips, bit for bit; what cannot is refused by name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geokr_core.backbone.bundle import open_bundle, verify_bundle
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.backbone.loader.geokr_backbone import BundleError, prepare, stretch_limits
from geokr_core.chips.stretch import Stretch, percentiles
from geokr_core.step.files import read_json, write_json
from geokr_core.testing import redescribe


@pytest.fixture
def with_stretch(bundle: Path, tmp_path: Path) -> Any:
    def made(**stretch: Any) -> Path:
        folder = shutil.copytree(bundle, tmp_path / "b", dirs_exist_ok=True)
        redescribe(folder, stretch=stretch)
        return folder

    return made


def scene(dtype: str, seed: int = 0) -> np.ndarray:
    """A scene (3, H, W) as a sensor stores it."""
    values = np.random.default_rng(seed).gamma(4.0, 300.0, size=(3, 90, 70)) * np.array([1.0, 0.7, 2.0])[:, None, None]
    return (values / 1e4 if dtype.startswith("float") else values - 200 * (dtype == "int16")).astype(dtype)


def chips_of_the_training(pixels: np.ndarray, valid: np.ndarray, *, joint: bool = False) -> np.ndarray:
    """uint8 (H, W, C) as the step `chips` makes it."""
    known = [band[valid] for band in pixels]
    groups = [np.concatenate(known)] * 3 if joint else known
    low, high = zip(*(percentiles(group, (2.0, 98.0)) for group in groups), strict=True)
    return Stretch(low, high).apply(pixels, valid)


def normalised(images: np.ndarray, folder: Path) -> torch.Tensor:
    """uint8 (B, C, H, W) by the formula of the bundle."""
    content = read_json(folder / "backbone.json")
    mean, std = (torch.tensor(content[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (torch.from_numpy(images).float() / 255 - mean) / std


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
def test_a_scene_is_prepared_bit_for_bit_as_in_training(dtype: str, bundle: Path) -> None:
    pixels, valid = scene(dtype), np.ones((90, 70), bool)
    valid[:20] = False
    wanted = normalised(chips_of_the_training(pixels, valid).transpose(2, 0, 1)[None].copy(), bundle)
    limits = stretch_limits(pixels, bundle, valid=valid)
    assert torch.equal(prepare(pixels, bundle, limits=limits, valid=valid), wanted)
    if dtype.endswith("16"):
        assert torch.equal(prepare(pixels, bundle, valid=valid), wanted)
        assert torch.equal(prepare(pixels.astype(np.float32), bundle, valid=valid), wanted)


FIXED = {"kind": "fixed", "low": [0.0], "high": [0.3]}
PERCENTILES = {"kind": "percentile", "low": 2.0, "high": 98.0}
BYTES = np.random.default_rng(3).integers(0, 256, size=(3, 16, 24), dtype=np.uint8)


@pytest.mark.parametrize("stretch", [PERCENTILES, {**PERCENTILES, "kind": "joint_percentile"}, FIXED, {"kind": "none"}])
@pytest.mark.parametrize("divided", ["to_tensor", "to_dtype_float64", "16 bits", "dark 8 bits"])
def test_an_image_that_was_divided_is_refused_with_the_way_back(stretch: Any, divided: str, with_stretch: Any) -> None:
    folder, bits = with_stretch(**stretch), 16 if divided == "16 bits" else 8
    image = {
        "to_tensor": torch.from_numpy(BYTES).float().div(255),
        "to_dtype_float64": BYTES / 255,
        "16 bits": scene("uint16").astype(np.float32) * np.float32(1 / 65535),
        "dark 8 bits": (BYTES // 64).astype(np.float32) / 255,
    }[divided]
    complaint = (
        rf"{bits} bits divided by {2**bits - 1}, as ToTensor.*`\(image \* {2**bits - 1}\)\.round\(\)`.*uint{bits}"
    )
    for asked in (prepare, stretch_limits):
        with pytest.raises(BundleError, match=complaint):
            asked(image, folder)
    with pytest.raises(BundleError, match=complaint):  # limits of the scene as it is stored
        prepare(image, folder, limits=([10.0] * 3, [2000.0] * 3))
    back = (image * (2**bits - 1)).round()
    back = np.asarray(back, f"uint{bits}")
    assert np.array_equal(back, {"16 bits": scene("uint16"), "dark 8 bits": BYTES // 64}.get(divided, BYTES))


def test_fractions_are_taken_where_limits_say_their_range(bundle: Path) -> None:
    divided = torch.from_numpy(BYTES).float() / 255
    assert torch.equal(prepare(divided, bundle, limits=([0] * 3, [1] * 3)), prepare(BYTES, bundle))
    resized = torch.nn.functional.interpolate(divided[None], size=(20, 30), mode="bilinear")
    with pytest.raises(BundleError, match=r"Floats from 0.*give limits=stretch_limits\(scene\) of the whole scene"):
        prepare(resized, bundle)
    with pytest.raises(BundleError, match="Floats from -3.* do not say"):
        prepare(normalised(BYTES[None], bundle) - 1, bundle)
    prepare(resized, bundle, limits=([0] * 3, [1] * 3))


def test_whole_numbers_that_may_be_of_either_range_say_their_type(bundle: Path) -> None:
    with pytest.raises(BundleError, match="Floats from 0 to 255 .* uint8 or uint16"):
        prepare(BYTES.astype(np.float32), bundle)
    dark = BYTES // 64  # of 8 bits and of 16: the type says how it is meant
    assert torch.equal(prepare(dark, bundle), normalised(dark[None], bundle))
    stretched = chips_of_the_training(dark, np.ones((16, 24), bool)).transpose(2, 0, 1)[None]
    assert torch.equal(prepare(dark.astype(np.uint16), bundle), normalised(stretched.copy(), bundle))


def test_reflectances_are_no_divided_images(with_stretch: Any) -> None:
    folder = with_stretch(**FIXED)
    stored = scene("uint16")
    for reflectance in (stored * np.float32(1e-4), stored / 1e4, (stored - 1000.0) / 1e4):
        prepare(reflectance, folder)
    dark = np.zeros((3, 8, 8), np.float32)
    assert torch.equal(prepare(dark, folder), normalised(np.zeros((1, 3, 8, 8), np.uint8), folder))
    prepare(stored * np.float32(1e-4), folder, valid=np.zeros((90, 70), bool))


def test_part_of_a_scene_is_prepared_by_the_limits_of_the_whole(bundle: Path) -> None:
    pixels = scene("uint16")
    limits = stretch_limits(pixels, bundle)
    whole, part = prepare(pixels, bundle), pixels[:, 10:42, 5:37]
    assert torch.equal(prepare(part, bundle, limits=limits), whole[..., 10:42, 5:37])
    assert not torch.equal(prepare(part, bundle), whole[..., 10:42, 5:37])


def test_layout_and_library_make_no_difference(bundle: Path) -> None:
    pixels = scene("uint16")
    wanted = prepare(pixels, bundle)
    assert wanted.shape == (1, 3, 90, 70)
    assert wanted.dtype == torch.float32
    for other in (
        pixels.transpose(1, 2, 0),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels.transpose(1, 2, 0).copy()),
        pixels.astype(">u2"),
        pixels[None],
        pixels.transpose(1, 2, 0)[None],
    ):
        assert torch.equal(prepare(other, bundle), wanted)
    assert len(prepare(np.stack([pixels, pixels]), bundle)) == 2


def test_bytes_are_taken_as_they_are_unless_limits_are_given(bundle: Path) -> None:
    pixels = np.random.default_rng(0).integers(20, 60, size=(3, 16, 24), dtype=np.uint8)
    assert torch.equal(prepare(pixels, bundle), normalised(pixels[None], bundle))
    stretched = Stretch((20.0,) * 3, (60.0,) * 3).apply(pixels, np.ones((16, 24), bool)).transpose(2, 0, 1)[None]
    assert torch.equal(prepare(pixels, bundle, limits=([20] * 3, [60] * 3)), normalised(stretched.copy(), bundle))


def test_pixels_without_data_are_what_they_were_in_training(bundle: Path) -> None:
    pixels, valid = scene("float32"), np.ones((90, 70), bool)
    pixels[:, 3, 4], valid[3, 4] = np.nan, False
    limits = stretch_limits(pixels, bundle, valid=valid)
    assert torch.equal(
        prepare(pixels, bundle, limits=limits, valid=valid)[0, :, 3, 4],
        normalised(np.zeros((1, 3, 1, 1), np.uint8), bundle)[0, :, 0, 0],
    )
    with pytest.raises(BundleError, match="finite values.*`valid`"):
        prepare(pixels, bundle)
    with pytest.raises(BundleError, match="No pixel holds data"):
        prepare(scene("uint16"), bundle, valid=np.zeros((90, 70), bool))


def test_joint_percentiles_keep_the_colours(with_stretch: Any) -> None:
    folder = with_stretch(kind="joint_percentile", low=2.0, high=98.0)
    pixels, valid = scene("uint16"), np.ones((90, 70), bool)
    wanted = normalised(chips_of_the_training(pixels, valid, joint=True).transpose(2, 0, 1)[None].copy(), folder)
    assert torch.equal(prepare(pixels, folder), wanted)


def test_a_fixed_scale_is_that_of_the_training_and_refuses_values_before_their_scale(with_stretch: Any) -> None:
    folder = with_stretch(kind="fixed", low=[0.0], high=[0.3])
    reflectance = scene("float32")
    stretched = Stretch((0.0,) * 3, (0.3,) * 3).apply(reflectance, np.ones((90, 70), bool)).transpose(2, 0, 1)[None]
    assert torch.equal(prepare(reflectance, folder), normalised(stretched.copy(), folder))
    with pytest.raises(BundleError, match=r"stretched 0 … 0.3 of reflectance.*scale and offset"):
        prepare(scene("uint16"), folder)
    as_stored = prepare((reflectance * 1e4).round().astype(np.uint16), folder, limits=([0.0] * 3, [3000.0] * 3))
    assert float((as_stored - prepare(reflectance, folder)).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        ([[1, 2]], "found list"),
        (Image.new("RGB", (8, 8)), r"found Image; give `numpy.asarray\(image\)`"),
        (Path("a.tif"), r"found PosixPath; .*open a file first"),
        (None, "found NoneType; .*open a file first"),
        (np.zeros((3, 0, 8), np.uint8), r"with pixels, .*found \(3, 0, 8\)"),
        (np.zeros((0, 3, 8, 8), np.uint8), r"with pixels, .*found \(0, 3, 8, 8\)"),
        (np.zeros((3, 8, 8), np.int64), "found int64; convert it"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "found bool"),
        (np.zeros((4, 8, 8), np.uint8), r"3 bands red, green, blue in this order, found \(4, 8, 8\)"),
        (np.zeros((8, 8), np.uint8), r"found \(8, 8\)"),
        (np.zeros((3, 8, 3), np.uint8), "two ways; give layout='CHW'"),
        (np.zeros((3, 8, 8), np.uint16), "a band without contrast"),
    ],
)
def test_what_is_no_image_for_this_backbone_is_refused_by_name(image: Any, complaint: str, bundle: Path) -> None:
    with pytest.raises(BundleError, match=complaint):
        prepare(image, bundle)


def test_arguments_that_do_not_fit_the_image_are_refused_by_name(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"shape \(HWC\).*found \(3, 90, 70\)"):
        prepare(scene("uint16"), bundle, layout="HWC")
    with pytest.raises(BundleError, match=r"`valid` of shape \(90, 70\), found \(70, 90\)"):
        prepare(scene("uint16"), bundle, valid=np.ones((70, 90), bool))
    with pytest.raises(BundleError, match="limits for 3 bands"):
        prepare(scene("uint16"), bundle, limits=([0.0], [1.0]))


def test_bundles_that_record_no_stretch_open_and_ask_for_limits(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "old")
    content = {key: value for key, value in read_json(folder / "backbone.json").items() if key != "stretch"}
    write_json(folder / "backbone.json", {**content, "description_sha256": geokr_backbone.description_digest(content)})
    open_bundle(folder)
    verify_bundle(folder)
    pixels = scene("uint16")
    with pytest.raises(BundleError, match="need limits here.*'not recorded'"):
        prepare(pixels, folder)
    assert torch.equal(prepare(pixels, folder, limits=stretch_limits(pixels, bundle)), prepare(pixels, bundle))
    eight_bits = np.zeros((3, 8, 8), np.uint8)
    assert torch.equal(prepare(eight_bits, folder), prepare(eight_bits, bundle))
