"""Loads a GeoKR backbone into torchvision, timm or segmentation-models-pytorch, and prepares images for it.

This file lies beside the weights in every bundle, and is the distribution ``geokr-backbone``. To import it, torch,
safetensors and numpy are enough; the library a backbone is loaded into is imported only by the function that names it.

    import geokr_backbone
    network = geokr_backbone.load(folder)
    features = network(geokr_backbone.prepare(image, folder))  # an image of 8 or 16 bits in, float32 (1, D) out

``folder`` is where the bundle lies; it may be left out where this file lies in it. Every loader is strict: a weight that is
missing, left over or of another shape is an error. No file here is a pickle. ``backbone.json`` says which networks of which
libraries the weights fit.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent

FORMAT_VERSIONS = (1, 2)
"""Formats of ``backbone.json`` that this file reads. Since format 2 it names the networks and holds its own digest."""

_NEEDED = ("format_version", "architecture", "bands", "mean", "std", "golden_tolerance", "sha256")


class BundleError(ValueError):
    """The files are damaged, or what was asked for does not fit this backbone."""


def describe(folder: str | Path = HERE) -> dict[str, Any]:
    """What ``backbone.json`` says, or would say in the newest format: architecture, networks, bands, preprocessing, origin.

    ``folder`` is where the bundle lies, here as in every function; the folder of this file unless given.

    Raises:
        BundleError: there is no readable ``backbone.json``, its format is not known here, or it was changed.
    """
    path = Path(folder) / "backbone.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file; name the folder that the backbone was downloaded to.") from error
    except ValueError as error:
        raise BundleError(f"{path}: not readable as JSON ({error}); download the backbone again.") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version is not None and (not isinstance(version, int) or version not in FORMAT_VERSIONS):
        raise BundleError(
            f"{path}: format {version!r}; this file reads the formats {', '.join(map(str, FORMAT_VERSIONS))}. Use the loader beside the weights."
        )
    missing = [key for key in _NEEDED if not isinstance(description, dict) or description.get(key) is None]
    if missing:
        raise BundleError(f"{path}: no description of a backbone, {missing[0]!r} is missing; download it again.")
    if version == 1:
        return {**description, "network": _network_of_format_1(str(description["architecture"]))}
    if description.get("description_sha256") != description_digest(description):
        raise BundleError(f"{path}: changed or damaged since it was written; download the backbone again.")
    return dict(description)


def description_digest(description: dict[str, Any]) -> str:
    """SHA-256 of everything in ``backbone.json`` but this digest itself, in hex."""
    content = {key: value for key, value in description.items() if key != "description_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_state_dict(folder: str | Path = HERE) -> dict[str, Tensor]:
    """The weights by the key names of the library that they come from, without the classifier.

    Raises:
        BundleError: the weights are missing or not those that ``backbone.json`` names.
    """
    _check_digest(Path(folder), "backbone.safetensors", describe(folder)["sha256"].get("backbone.safetensors", ""))
    return load_file(Path(folder) / "backbone.safetensors")


def prepare(
    image: Any,
    folder: str | Path = HERE,
    *,
    limits: tuple[Any, Any] | None = None,
    valid: Any = None,
    layout: str | None = None,
) -> Tensor:
    """Prepare an image, or a batch of images of one shape, as the training prepared its chips.

    Images of 8 bits are taken as they are. All others are stretched to 8 bits as the training stretched its scenes. Then
    each band is normalised: ``(x / 255 - mean) / std``. Floats say their range by ``limits``, unless they are whole numbers
    beyond 255, or physical values for a training by a fixed scale.

    Args:
        image: numpy array or torch tensor, (C, H, W) or (H, W, C), or a batch of these; uint8, or uint16, int16 or floats as
            they are stored in a scene's file. C are the bands of ``describe()["bands"]``, in that order.
        folder: see `describe`.
        limits: values of each band that become 0 and those that become 255: what `stretch_limits` gives for the whole scene
            of which the image is a part. They stretch images of 8 bits, too. None: those of the image itself.
        valid: bool (H, W), which pixels hold data; the others become 0. None: all.
        layout: ``"CHW"`` or ``"HWC"``; None: by the shape.

    Returns:
        float32 (B, C, H, W), on the tensor's device.

    Raises:
        BundleError: another type, shape or number of bands, values that are not finite or were divided (ToTensor), a band without
            contrast, limits of another unit than the image, or none where they are needed.
    """
    description = describe(folder)
    images, mask, known = _images(image, description, layout, valid)
    if limits is not None:
        if any(limit > 2 for limit in limits[1]):  # those of 0 and 1 are for such an image
            _require_undivided(known)
        images = _stretched(images, limits)
    elif images.dtype != torch.uint8:
        measured = _limits(known, description)
        if "float" in str(image.dtype) and description["stretch"]["kind"] != "fixed":
            _require_a_range(known)
        images = _stretched(images, measured)
    images = images if mask is None else images * mask
    mean, std = (torch.tensor(description[key], device=images.device).view(-1, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255 - mean).div(std)


def stretch_limits(
    scene: Any, folder: str | Path = HERE, *, valid: Any = None, layout: str | None = None
) -> tuple[list[float], list[float]]:
    """The values of each band that become 0 and those that become 255, chosen for a whole scene as the training chose them.

    Arguments and errors are those of `prepare`.
    """
    description = describe(folder)
    return _limits(_images(scene, description, layout, valid)[2], description)


def _images(image: Any, about: dict[str, Any], layout: str | None, valid: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    """The images as a tensor (B, C, H, W) of uint8 or floats, their mask, and their pixels that hold data (B, C, …)."""
    bands, kind = about["bands"], type(image).__name__
    if isinstance(image, np.ndarray | Tensor):
        kind = str(image.dtype).removeprefix("torch.") if isinstance(image, Tensor) else image.dtype.name
    if kind not in ("uint8", "uint16", "int16", "float32", "float64"):
        open_it = "give `numpy.asarray(image)` of an image in memory; open a file first"
        how = "convert it" if isinstance(image, np.ndarray | Tensor) else open_it
        raise BundleError(f"Expected uint8, uint16, int16 or floats in an array or tensor, found {kind}; {how}.")
    shape = tuple(image.shape)
    fits = [name for name, axis in (("CHW", -3), ("HWC", -1)) if len(shape) in (3, 4) and shape[axis] == len(bands)]
    if not fits or 0 in shape or layout not in (None, *fits):
        raise BundleError(
            f"Expected images with pixels, of shape ({layout or 'CHW or HWC'}), or a batch of these, with the {len(bands)} bands {', '.join(bands)} in this order, found {shape}; select or reorder bands and axes."
        )
    if layout is None and len(fits) > 1:
        raise BundleError(f"The shape {shape} can be read in two ways; give layout='CHW' or layout='HWC'.")
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image, dtype=kind))  # in this machine's byte order
    images = image if len(shape) == 4 else image[None]
    images = images if (layout or fits[0]) == "CHW" else images.movedim(-1, 1)
    images = images.float() if kind.endswith("16") else images
    mask = None if valid is None else torch.as_tensor(valid, device=images.device).bool()
    if mask is not None and mask.shape != images.shape[2:]:
        raise BundleError(f"Expected `valid` of shape {tuple(images.shape[2:])}, found {tuple(mask.shape)}.")
    known = images if mask is None else images[..., mask]
    if not bool(torch.isfinite(known).all()):
        raise BundleError("Expected finite values wherever the image holds data; say where it does with `valid`.")
    return images, mask, known


def _limits(known: Tensor, description: dict[str, Any]) -> tuple[list[float], list[float]]:
    stretch, num_bands = description.get("stretch") or {"kind": "not recorded"}, known.shape[1]
    _require_undivided(known)
    if stretch["kind"] == "fixed":
        low, high = ([float(v) for v in stretch[end]] * (num_bands // len(stretch[end])) for end in ("low", "high"))
        if max(high) - min(low) <= 2 and bool((known > 2).any()) and bool((known == known.round()).all()):
            raise BundleError(
                f"The training stretched {min(low):g} … {max(high):g} of reflectance or another physical value, and these are whole numbers: apply the file's scale and offset first, or give limits as they are stored."
            )
        return low, high
    if stretch["kind"] not in ("percentile", "joint_percentile"):
        raise BundleError(
            f"Images that are not uint8 need limits here: how the training stretched to 8 bits is {stretch['kind']!r}. Percentiles 2 and 98 of the whole scene are a common choice."
        )
    if not known.numel():
        raise BundleError("No pixel holds data, so there is nothing to choose limits by.")
    values = known.transpose(0, 1).flatten(1).double().cpu().numpy()
    groups = [values] * num_bands if stretch["kind"] == "joint_percentile" else list(values)
    pairs = [np.percentile(group, (stretch["low"], stretch["high"])).tolist() for group in groups]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _require_undivided(values: Tensor) -> None:
    """Refuse multiples of 1/255 or 1/65,535 between 0 and 1; reflectances, stored as 1/10,000, lie between these steps."""
    if not bool(((values > 0) & (values < 1)).any()) or bool(((values < 0) | (values > 1)).any()):
        return
    for bits, most in ((8, 255), (16, 65535)):
        if bool(((values * most - (values * most).round()).abs() < 0.01).all()):
            raise BundleError(
                f"Expected an image as its file holds it, found {bits} bits divided by {most}, as ToTensor does: leave that out, or take it back by `(image * {most}).round()`, converted to uint{bits}."
            )


def _require_a_range(values: Tensor) -> None:
    """Refuse floats that may be of any range."""
    least, most = float(values.min()), float(values.max())
    if bool((values != values.round()).any()) or 0 <= least <= most <= 255:
        raise BundleError(
            f"Floats from {least:g} to {most:g} do not say what is black and what is white. Whole numbers: convert them to uint8 "
            "or uint16. Fractions: leave divisions and normalising to `prepare`; where a scene's file itself holds fractions, "
            "give limits=stretch_limits(scene) of the whole scene."
        )


def _stretched(images: Tensor, limits: tuple[Any, Any]) -> Tensor:
    """uint8, rounded as the training rounded."""
    images = images if images.is_floating_point() else images.float()
    low, high = (torch.as_tensor(end, dtype=images.dtype, device=images.device).view(-1, 1, 1) for end in limits)
    if len(low) != images.shape[1] or len(high) != images.shape[1] or not bool((high > low).all()):
        raise BundleError(
            f"Expected limits for {images.shape[1]} bands, each upper one above its lower one, found {low.flatten().tolist()} and {high.flatten().tolist()}; a band without contrast cannot be stretched."
        )
    return (((images.nan_to_num() - low) / (high - low)).clamp(0, 1) * 255).round().byte()


def load(folder: str | Path = HERE) -> nn.Module:
    """The backbone in eval mode, as the library that it was trained with builds it; its output is (B, feature_dim).

    Raises:
        BundleError: no library has the architecture, or see `load_state_dict`.
        RuntimeError: the weights do not fit the library's network.
        ImportError: the library is not installed.
    """
    rows = describe(folder)["network"]["loads_into"]
    if not rows:
        raise BundleError(
            f"No library has {describe(folder)['architecture']}: build that network yourself, for the bands of `describe()` and without its classifier, and fill it with `load_into(network)`."
        )
    return into_timm(folder) if rows[0]["library"] == "timm" else into_torchvision(folder)


def load_into(network: nn.Module, folder: str | Path = HERE) -> nn.Module:
    """Fill a network of your own and put it into eval mode; errors are those of `load_state_dict` and torch's RuntimeError."""
    network.load_state_dict(load_state_dict(folder), strict=True)
    return network.eval()


def into_torchvision(folder: str | Path = HERE) -> nn.Module:
    """The backbone as a torchvision network in eval mode whose output is the pooled last stage, (B, feature_dim).

    Put a layer of your own in place of ``fc`` (ResNet), or behind the network, to fine-tune it.

    Raises:
        BundleError: torchvision does not have the architecture, or see `load_state_dict`.
        RuntimeError, ImportError: see `load`.
    """
    description, row = _row(folder, "torchvision")
    import torchvision

    _require_plain(row, row["name"] in torchvision.models.list_models())
    network: nn.Module = getattr(torchvision.models, row["name"])(weights=None, **row["options"])
    first = description["network"]["first_layer"]
    network.set_submodule(first, _for_bands(network.get_submodule(first), len(description["bands"])))
    return _filled(network, row, folder)


def into_timm(folder: str | Path = HERE) -> nn.Module:
    """The backbone as a timm network in eval mode whose output is the pooled last stage, (B, feature_dim).

    ``network.forward_intermediates`` gives the stage maps; ``network.reset_classifier(num_classes)`` adds a classifier.

    Raises:
        BundleError: timm does not have the architecture, or see `load_state_dict`.
        RuntimeError, ImportError: see `load`.
    """
    description, row = _row(folder, "timm")
    import timm

    _require_plain(row, timm.is_model(row["name"]))
    options = {"pretrained": False, "in_chans": len(description["bands"]), **row["options"]}
    return _filled(timm.create_model(row["name"], **options), row, folder)


def into_smp(folder: str | Path = HERE, decoder: str = "Unet", classes: int = 1, **options: Any) -> nn.Module:
    """A segmentation-models-pytorch network in eval mode whose encoder is the backbone; its decoder is untrained.

    Args:
        folder: see `describe`.
        decoder: a model class of segmentation-models-pytorch, e.g. ``Unet``, ``FPN``, ``DeepLabV3Plus``.
        classes: number of output channels.
        **options: further arguments of that class.

    Raises:
        BundleError: the library lacks the architecture or the decoder, or see `load_state_dict`.
        RuntimeError, ImportError: see `load`.
    """
    description, row = _row(folder, "smp")
    import segmentation_models_pytorch as smp
    import timm

    of_timm = row["name"].startswith("tu-") and timm.is_model(row["name"].removeprefix("tu-"))
    _require_plain(row, of_timm or row["name"] in smp.encoders.get_encoder_names())
    build = getattr(smp, decoder, None)
    if not isinstance(build, type):
        raise BundleError(f"segmentation-models-pytorch has no model {decoder!r}; Unet, FPN, DeepLabV3Plus are some.")
    asked = {"encoder_name": row["name"], "encoder_weights": None, "in_channels": len(description["bands"])}
    return _filled(build(**asked, classes=classes, **{**row["options"], **options}), row, folder)


def torchgeo_weights(folder: str | Path = HERE) -> Any:
    """The weights as a member of a ``WeightsEnum``, as TorchGeo's models and tasks take it: ``resnet18(weights=...)``.

    Its ``meta`` names ``model``, ``in_chans`` and ``bands``; its ``transforms`` normalise pixels of 0 to 255. A task of TorchGeo that is
    asked for other ``in_channels`` leaves the first layer out and only warns: give it ``weights.meta["in_chans"]``.

    Errors are those of `into_timm`, whose networks TorchGeo takes.
    """
    description, row = _row(folder, "timm")
    from torchvision.models._api import Weights, WeightsEnum
    from torchvision.transforms.v2 import Normalize

    meta = {"model": row["name"], "in_chans": len(description["bands"]), "bands": description["bands"]}
    pixels = nn.Sequential(Normalize([0.0], [255.0]), Normalize(description["mean"], description["std"]))

    class GeoKRWeights(WeightsEnum):  # type: ignore[misc]  # torchvision ships no types
        BACKBONE = Weights((Path(folder).resolve() / "backbone.safetensors").as_uri(), pixels, meta)

        def get_state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:
            return into_timm(folder).state_dict()

    return GeoKRWeights.BACKBONE


def check_files(folder: str | Path = HERE) -> None:
    """Check that every file is the one that was built; a BundleError names one that is missing or changed."""
    for name, digest in sorted(describe(folder)["sha256"].items()):
        _check_digest(Path(folder), name, digest)


def verify(folder: str | Path = HERE, network: nn.Module | None = None) -> None:
    """Check that every file is the one that was built, and that the weights give the golden features.

    Runs in fp32 on the CPU. ``network``, filled with the weights, is for an architecture that no library has; else `load` gives it.

    Raises:
        BundleError: a file is missing or changed, the preprocessing or the features differ from the golden ones.
        RuntimeError: the weights do not fit the library's network.
    """
    check_files(folder)
    golden = load_file(Path(folder) / "golden.safetensors")
    prepared = prepare(golden["images"], folder, layout="CHW")
    if not torch.allclose(prepared, golden["input"], rtol=0, atol=1e-5):
        raise BundleError(f"{folder}: preprocessing does not give the golden input; mean, std or bands were changed.")
    network = load(folder) if network is None else network
    with torch.inference_mode():
        features = network(golden["input"])
    expected = golden["features"]
    # Other processors sum in another order, which shifts the last digits in proportion to the largest feature.
    limit = describe(folder)["golden_tolerance"] * max(1.0, float(expected.abs().max()))
    error = float((features - expected).abs().max()) if features.shape == expected.shape else float("inf")
    if not error <= limit:
        raise BundleError(
            f"{folder}: the features differ from the golden ones by {error:.3g} (allowed: {limit:.3g}). Weights or architecture are not those of the bundle; download it again."
        )


def _row(folder: str | Path, library: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description, and what it says about the network of one library."""
    about = describe(folder)
    rows = {row["library"]: row for row in about["network"]["loads_into"]}
    if library not in rows:
        works = ", ".join(f"into_{name}" for name in rows) or "load_into, for a network of your own"
        raise BundleError(f"{library} has no {about['architecture']} that these weights fit. What works: {works}.")
    return about, rows[library]


def _filled(network: nn.Module, row: dict[str, Any], folder: str | Path) -> nn.Module:
    """Cut what stands behind the last stage, and load the weights under the library's names."""
    for name, kind in row["replaced"].items():
        network.set_submodule(name, _REPLACEMENTS[kind]())
    state = {_renamed(key, row["renamed"]): value for key, value in load_state_dict(folder).items()}
    inner = network.get_submodule(row["inside"])
    wanted = inner.state_dict()
    for key, value in state.items():
        # Scales of channels are vectors in one library and (C, 1, 1) in another.
        if key in wanted and value.squeeze().shape == wanted[key].squeeze().shape:
            state[key] = value.view_as(wanted[key])
    inner.load_state_dict(state, strict=True)
    return network.eval()


_REPLACEMENTS: Any = {"identity": nn.Identity, "flatten": nn.Flatten, "average_pool": lambda: nn.AdaptiveAvgPool2d(1)}


def _renamed(key: str, beginnings: dict[str, str]) -> str:
    found = next((beginning for beginning in beginnings if key.startswith(beginning)), "")
    return beginnings[found] + key.removeprefix(found) if found else key


_NEVER = ("weights", "pretrained", "checkpoint_path", "cache_dir")
"""Beginnings of arguments that would make a library read other files or ask the network."""


def _require_plain(row: dict[str, Any], known: bool) -> None:
    """Refuse a description that asks a library for anything but one of its networks, untrained."""
    bad = [name for name in row["options"] if name.startswith(_NEVER)]
    if bad or not known:
        asked = f"the option {bad[0]!r}" if bad else f"{row['name']!r}"
        raise BundleError(
            f"backbone.json asks {row['library']} for {asked}, which this version of it does not have or which is not allowed here; use the version named in the model card, or do not use this bundle."
        )


def _network_of_format_1(architecture: str) -> dict[str, Any]:
    """What ``backbone.json`` of format 2 says about the architectures that bundles of format 1 can have."""
    vgg = {"avgpool": "average_pool", "classifier": "identity"}
    resnet, squeezenet = {"fc": "identity"}, {"classifier": "average_pool"}
    known = {"resnet18": resnet, "resnet50": resnet, "vgg16_bn": vgg, "squeezenet1_1": squeezenet}
    if architecture not in known:
        return {"first_layer": "", "loads_into": []}
    rows: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [("torchvision", "", {}, known[architecture])]
    if architecture != "squeezenet1_1":
        before_classifier = {"pre_logits": "identity"} if architecture == "vgg16_bn" else {}
        rows += [("timm", "", {"num_classes": 0}, before_classifier), ("smp", "encoder", {}, {})]
    keys, same = ("library", "inside", "options", "replaced"), {"name": architecture, "renamed": {}}
    first_layer = "conv1" if known[architecture] is resnet else "features.0"
    return {"first_layer": first_layer, "loads_into": [same | dict(zip(keys, row, strict=True)) for row in rows]}


def _for_bands(first: nn.Module | Tensor, num_bands: int) -> nn.Conv2d:
    if not isinstance(first, nn.Conv2d):
        raise BundleError(f"Expected the network to begin with a convolution, found {type(first).__name__}.")
    if first.in_channels == num_bands:
        return first
    same: dict[str, Any] = {name: getattr(first, name) for name in ("kernel_size", "stride", "padding")}
    return nn.Conv2d(num_bands, first.out_channels, bias=first.bias is not None, **same)


def _check_digest(folder: Path, name: str, expected: str) -> None:
    if Path(name).name != name:
        raise BundleError(f"{folder}: backbone.json names a file outside the bundle ({name!r}); do not use it.")
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path}: the file is missing; download the backbone again, all of its files.")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise BundleError(
            f"{path}: the file was changed or damaged: its sha256 is {found}, backbone.json says {expected}. Download the backbone again."
        )
