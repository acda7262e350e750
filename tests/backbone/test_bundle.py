"""The backbone bundle: it reproduces its golden features, loads strictly elsewhere, and refuses what does not fit."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pystac
import pytest
import torch
from pydantic import ValidationError
from pystac.extensions.mlm import MLMExtension
from pystac.validation import validate_dict
from safetensors.torch import load_file, save_file

from geokr_core.backbone.build import build_bundle, loading
from geokr_core.backbone.bundle import BUNDLE_FILES, open_bundle, verify_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.backbone.stac_item import stac_item
from geokr_core.errors import BackboneError, GeoKRError, MissingInputError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.architectures import spec_of
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining, record_files, redescribe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=24)


def bundle_of(dataset: LevirKR, folder: Path, architecture: str) -> Path:
    pretraining = make_pretraining(folder / "pretraining", dataset, architecture=architecture)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, folder / "backbone", RecordingReporter())
    return folder / "backbone"


@pytest.fixture(scope="module")
def small(dataset: LevirKR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(dataset, tmp_path_factory.mktemp("squeezenet"), "squeezenet1_1")


@pytest.fixture(scope="module")
def resnet(dataset: LevirKR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(dataset, tmp_path_factory.mktemp("resnet"), "resnet18")


def test_bundle_describes_itself(small: Path, dataset: LevirKR) -> None:
    bundle = open_bundle(small)
    description = read_json(small / "backbone.json")

    assert sorted(path.name for path in small.iterdir()) == sorted(BUNDLE_FILES)
    assert bundle.bands == ("red", "green", "blue")
    assert bundle.mean.tolist() == pytest.approx(dataset.channel_mean.tolist(), abs=1e-6)
    assert (bundle.gsd_m_min, bundle.gsd_m_max) == (16.0, 16.0)
    assert bundle.data_version == dataset.data_version
    assert bundle.feature_dim == load_file(small / "golden.safetensors")["features"].shape[1] == 512
    assert description["band_range_um"]["red"] == "0.60-0.70"
    assert set(description["sha256"]) == set(BUNDLE_FILES) - {"backbone.json"}


def test_same_inputs_give_the_same_bytes_whatever_the_number_of_threads(
    small: Path, dataset: LevirKR, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 2)
    try:
        again = bundle_of(dataset, tmp_path, "squeezenet1_1")
    finally:
        torch.set_num_threads(threads)
    assert data_version(again) == data_version(small)


def test_nothing_in_a_bundle_tells_where_or_when_it_was_made(small: Path, dataset: LevirKR) -> None:
    for name in ("backbone.json", "mlm.json", "MODEL_CARD.md"):
        text = (small / name).read_text(encoding="utf-8")
        assert str(small.parent) not in text
        assert str(dataset.folder.parent) not in text


def test_card_says_so_where_the_training_data_was_generated(small: Path) -> None:
    assert "trained on a generated world" in (small / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_card_shows_only_loaders_that_work(small: Path, resnet: Path) -> None:
    assert "into_timm" not in (small / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "into_timm" in (resnet / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_licence_is_the_users_and_stands_wherever_a_reader_looks(dataset: LevirKR, tmp_path: Path) -> None:
    pretraining = make_pretraining(tmp_path / "pretraining", dataset)
    config = BackboneConfig(licence="CC-BY-NC-4.0")
    build_bundle(config, dataset.folder, pretraining, tmp_path / "b", RecordingReporter())
    assert read_json(tmp_path / "b" / "backbone.json")["licence"] == "CC-BY-NC-4.0"
    assert read_json(tmp_path / "b" / "mlm.json")["properties"]["license"] == "CC-BY-NC-4.0"
    card = (tmp_path / "b" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "license: cc-by-nc-4.0" in card
    assert "CC-BY-NC-4.0 for the weights" in card
    assert "Apache" not in card


def test_licence_that_catalogues_could_not_hold_is_refused() -> None:
    with pytest.raises(ValidationError, match="licence"):
        BackboneConfig(licence="free for friends")


def test_stac_item_is_valid_and_pystac_reads_its_model(small: Path) -> None:
    item = pystac.Item.from_file(small / "mlm.json")
    validate_dict(item.to_dict(include_self_link=False), extensions=[])  # against the core schemas that pystac carries
    model = MLMExtension.ext(item)
    assert (model.mlm_name, model.architecture, model.framework) == ("geokr-resnet18", "squeezenet1_1", "PyTorch")
    assert model.input[0].input.shape == [-1, 3, -1, -1]
    assert model.output[0].result.shape == [-1, 512]
    assert model.total_parameters == sum(v.numel() for v in load_file(small / "backbone.safetensors").values())


def test_an_item_that_would_not_be_valid_is_refused(small: Path, dataset: LevirKR) -> None:
    description = {**read_json(small / "backbone.json"), "licence": "two words"}
    with pytest.raises(BackboneError, match="STAC item of the bundle is not valid"):
        stac_item(description, dataset, small / "backbone.safetensors")


def test_stac_item_has_what_the_mlm_extension_requires(small: Path) -> None:
    item = read_json(small / "mlm.json")
    properties = item["properties"]
    assert item["type"] == "Feature"
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(properties)
    # MLM refers to bands by name: each must be described under STAC 1.1's `bands`.
    assert properties["mlm:input"][0]["bands"] == [band["name"] for band in properties["bands"]]
    assert properties["mlm:input"][0]["input"]["shape"] == [-1, 3, -1, -1]
    assert properties["start_datetime"] == "2020-07-01T00:00:00Z"
    assert properties["datetime"] is None
    assert any("mlm:model" in asset["roles"] for asset in item["assets"].values())
    for asset in item["assets"].values():
        assert (small / asset["href"]).is_file()
    digest = read_json(small / "backbone.json")["sha256"]["backbone.safetensors"]
    assert item["assets"]["weights"]["file:checksum"] == f"1220{digest}"


def test_value_scaling_of_the_stac_item_is_the_preprocessing(small: Path) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    scaling = read_json(small / "mlm.json")["properties"]["mlm:input"][0]["value_scaling"]
    by_item = torch.stack([(images[:, k] - entry["mean"]) / entry["stddev"] for k, entry in enumerate(scaling)], 1)
    assert torch.allclose(geokr_backbone.prepare(images, small), by_item, atol=1e-3)


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_golden_features_come_out_of_torchvision(architecture: str, small: Path, resnet: Path) -> None:
    folder = resnet if architecture == "resnet18" else small
    golden = load_file(folder / "golden.safetensors")
    with torch.inference_mode():
        features = geokr_backbone.into_torchvision(folder)(geokr_backbone.prepare(golden["images"], folder))
    assert torch.allclose(features, golden["features"], atol=1e-4 * float(golden["features"].abs().max()))
    # Features that hardly depend on the image would pass any comparison.
    assert float(golden["features"].std(dim=0).mean()) > 1e-3


def test_golden_features_come_out_of_timm(resnet: Path) -> None:
    golden = load_file(resnet / "golden.safetensors")
    with torch.inference_mode():
        features = geokr_backbone.into_timm(resnet)(golden["input"])
    assert torch.allclose(features, golden["features"], atol=1e-4 * float(golden["features"].abs().max()))


def test_encoder_of_smp_is_the_backbone_and_segments(resnet: Path) -> None:
    golden = load_file(resnet / "golden.safetensors")
    network = geokr_backbone.into_smp(resnet, "FPN", classes=6)
    with torch.inference_mode():
        features = network.encoder(golden["input"])[-1].mean(dim=(2, 3))
        maps = network(golden["input"])
    assert torch.allclose(features, golden["features"], atol=1e-4 * float(golden["features"].abs().max()))
    assert maps.shape == (4, 6, 64, 64)


def test_what_a_library_lacks_is_named_with_what_works(small: Path) -> None:
    with pytest.raises(geokr_backbone.BundleError, match=r"timm has no squeezenet1_1 .* What works: into_torchvision"):
        geokr_backbone.into_timm(small)
    with pytest.raises(geokr_backbone.BundleError, match="into_torchvision"):
        geokr_backbone.into_smp(small)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "vgg16_bn", "squeezenet1_1"])
def test_loader_knows_of_older_bundles_what_the_table_says(architecture: str) -> None:
    assert geokr_backbone._network_of_format_1(architecture) == loading(spec_of(architecture))


def as_format_1(folder: Path, to: Path) -> Path:
    """A bundle as it was written before it named its networks."""
    shutil.copytree(folder, to)
    description = read_json(to / "backbone.json")
    new = ("network", "description_sha256")
    write_json(to / "backbone.json", {k: v for k, v in description.items() if k not in new} | {"format_version": 1})
    return to


def test_bundles_of_format_1_still_open_verify_and_load(small: Path, resnet: Path, tmp_path: Path) -> None:
    for folder, libraries in ((small, ("torchvision",)), (resnet, ("torchvision", "timm", "smp"))):
        old = as_format_1(folder, tmp_path / folder.parent.name)
        assert open_bundle(old).libraries == libraries
        verify_bundle(old)
    golden = load_file(old / "golden.safetensors")
    with torch.inference_mode():
        features = geokr_backbone.into_timm(old)(golden["input"])
    assert torch.allclose(features, golden["features"], atol=1e-4 * float(golden["features"].abs().max()))


@pytest.mark.parametrize("version", [3, "2", None])
def test_a_format_that_is_not_known_is_refused_by_name(version: object, small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "b")
    redescribe(folder, format_version=version)
    complaint = r"format_version.* missing" if version is None else rf"format {version!r}.*reads the formats 1, 2"
    with pytest.raises(geokr_backbone.BundleError, match=complaint):
        geokr_backbone.load(folder)
    with pytest.raises(BackboneError, match=complaint):
        open_bundle(folder)


@pytest.mark.parametrize("change", [{"architecture": "resnet50"}, {"gsd_m_min": 5.0}, {"licence": "MIT"}])
def test_a_description_that_was_changed_is_refused(change: dict[str, object], small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "b")
    write_json(folder / "backbone.json", {**read_json(folder / "backbone.json"), **change})
    with pytest.raises(BackboneError, match=r"backbone.json: changed or damaged since it was written"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [{"name": "get_weight"}, {"options": {"weights": "DEFAULT"}}, {"options": {"checkpoint_path": "/x.pth"}}],
)
def test_a_description_cannot_make_a_library_do_more_than_build_its_networks(
    change: dict[str, object], small: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "b")
    network = read_json(folder / "backbone.json")["network"]
    network["loads_into"][0].update(change)
    redescribe(folder, network=network)
    with pytest.raises(geokr_backbone.BundleError, match="not allowed here"):
        geokr_backbone.load(folder)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp"])
def test_timm_is_asked_for_no_network_of_elsewhere(name: str, resnet: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(resnet, tmp_path / "b")
    network = read_json(folder / "backbone.json")["network"]
    network["loads_into"][1]["name"] = name
    network["loads_into"][2]["name"] = f"tu-{name}"
    redescribe(folder, network=network)
    with pytest.raises(geokr_backbone.BundleError, match="not allowed here"):
        geokr_backbone.into_timm(folder)
    with pytest.raises(geokr_backbone.BundleError, match="not allowed here"):
        geokr_backbone.into_smp(folder)


def test_unknown_decoder_is_refused(resnet: Path) -> None:
    with pytest.raises(geokr_backbone.BundleError, match="no model 'Segformerr'"):
        geokr_backbone.into_smp(resnet, "Segformerr")


def test_loader_works_without_this_project(resnet: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(resnet, tmp_path / "somewhere" / "else")
    code = """
import sys
sys.modules["geokr_core"] = None  # importing this project from here on is an error
sys.path.insert(0, ".")
import geokr_backbone
assert not {"torchvision", "timm", "segmentation_models_pytorch", "mlflow"} & set(sys.modules)
import torch
geokr_backbone.verify()
images = torch.zeros((1, 3, 64, 64), dtype=torch.uint8)
print(tuple(geokr_backbone.into_torchvision()(geokr_backbone.prepare(images)).shape))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=moved, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 512)"


def tampered(folder: Path, to: Path) -> Path:
    """A copy with other weights in one layer."""
    shutil.copytree(folder, to)
    state = load_file(to / "backbone.safetensors")
    name = next(iter(state))
    state[name] = state[name] * 1.05 + 0.05
    save_file(state, to / "backbone.safetensors")
    return to


def test_changed_weights_are_refused_by_their_digest(small: Path, tmp_path: Path) -> None:
    folder = tampered(small, tmp_path / "b")
    for read in (open_bundle, verify_bundle):
        with pytest.raises(
            BackboneError, match=r"backbone.safetensors: the file was changed or damaged.*geokr backbone"
        ):
            read(folder)
    with pytest.raises(geokr_backbone.BundleError, match="changed or damaged"):
        geokr_backbone.into_torchvision(folder)


def test_changed_weights_with_a_forged_digest_are_refused_by_the_golden_features(small: Path, tmp_path: Path) -> None:
    folder = tampered(small, tmp_path / "b")
    description = read_json(folder / "backbone.json")
    weights = (folder / "backbone.safetensors").read_bytes()
    redescribe(folder, sha256=description["sha256"] | {"backbone.safetensors": hashlib.sha256(weights).hexdigest()})
    with pytest.raises(BackboneError, match="features differ from the golden ones"):
        verify_bundle(folder)


def test_changed_statistics_are_refused(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "b")
    description = read_json(folder / "backbone.json")
    redescribe(folder, mean=description["mean"][::-1])
    with pytest.raises(BackboneError, match="golden input"):
        verify_bundle(folder)


def test_missing_file_is_named(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "b")
    (folder / "MODEL_CARD.md").unlink()
    with pytest.raises(BackboneError, match=r"MODEL_CARD.md: the file is missing"):
        verify_bundle(folder)


def test_digests_of_files_outside_the_bundle_are_refused(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "b")
    redescribe(folder, sha256={"../secret": "0"})
    with pytest.raises(BackboneError, match="outside the bundle"):
        verify_bundle(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"architecture": "resnet18"}'])
def test_damaged_description_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "backbone.json").write_text(content, encoding="utf-8")
    with pytest.raises(BackboneError, match=r"backbone.json"):
        open_bundle(tmp_path)


def test_folder_without_bundle_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="geokr backbone"):
        open_bundle(tmp_path)


def change_run(pretraining: Path, **changes: object) -> None:
    path = pretraining / "geokr-seed0" / "run.json"
    write_json(path, {**read_json(path), **changes})
    record_files(pretraining)


@pytest.mark.parametrize("name", ["backbone.safetensors", "run.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_run_that_is_not_what_it_recorded_is_not_bundled(
    name: str, damage: str, dataset: LevirKR, tmp_path: Path
) -> None:
    pretraining = make_pretraining(tmp_path / "p", dataset)
    path = pretraining / "geokr-seed0" / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        content[-40] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(GeoKRError, match=rf"{name}.*geokr pretrain"):
        build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "b", RecordingReporter())
    assert not (tmp_path / "b").exists()


def test_runs_that_recorded_nothing_of_their_files_are_bundled_still(dataset: LevirKR, tmp_path: Path) -> None:
    pretraining = make_pretraining(tmp_path / "p", dataset)
    runs = read_json(pretraining / "runs.json")
    write_json(pretraining / "runs.json", [{k: v for k, v in runs[0].items() if k != "files"}])
    build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "b", RecordingReporter())
    verify_bundle(tmp_path / "b")


def test_run_on_other_bands_is_refused(dataset: LevirKR, tmp_path: Path) -> None:
    pretraining = make_pretraining(tmp_path / "p", dataset)
    change_run(pretraining, bands=["nir", "red", "green"])
    with pytest.raises(BackboneError, match=r"pretrained on the bands nir, red, green"):
        build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "b", RecordingReporter())
    assert not (tmp_path / "b").exists()


def test_run_on_another_data_version_is_refused(dataset: LevirKR, tmp_path: Path) -> None:
    pretraining = make_pretraining(tmp_path / "p", dataset)
    change_run(pretraining, data_version="0.dir")
    with pytest.raises(BackboneError, match="geokr pretrain` again"):
        build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "b", RecordingReporter())


def test_weights_that_are_not_finite_are_not_bundled(dataset: LevirKR, tmp_path: Path) -> None:
    pretraining = make_pretraining(tmp_path / "p", dataset)
    path = pretraining / "geokr-seed0" / "backbone.safetensors"
    state = load_file(path)
    save_file({name: torch.full_like(value, torch.nan) for name, value in state.items()}, path)
    record_files(pretraining)
    with pytest.raises(BackboneError, match="not finite"):
        build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "b", RecordingReporter())
    assert not (tmp_path / "b").exists()


def test_only_a_run_on_true_land_cover_is_bundled(dataset: LevirKR, tmp_path: Path) -> None:
    pretraining = make_pretraining(tmp_path / "p", dataset)
    runs = read_json(pretraining / "runs.json")
    write_json(pretraining / "runs.json", [{**runs[0], "variant": "shuffled"}])
    with pytest.raises(BackboneError, match="no run of the variant `geokr`"):
        build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "b", RecordingReporter())
