"""Weights: written, read with every difference named, fitted to other bands, and ImageNet's."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geokr_core.errors import BackboneError
from geokr_core.networks.architecture import ArchitectureSpec
from geokr_core.networks.architectures import spec_of
from geokr_core.networks.network import spec_of_network
from geokr_core.step.digests import file_md5, sha256
from geokr_core.step.files import whole_file

_RGB: Final = ("red", "green", "blue")
"""Order of the input channels of weights trained on photographs."""
_BANDS_KEY: Final = "bands"
"""Entry of a safetensors header: names of the input channels, with commas between."""


def save_weights(module: nn.Module, path: Path, bands: Sequence[str] = ()) -> None:
    """Write the state of a module as safetensors, whole or not at all; the same state gives the same bytes.

    Args:
        module: any module; floating-point tensors are written as float32, counters as they are.
        path: the file to write.
        bands: common names of what its input channels are, kept in the file's header; none: nothing is written there.

    Raises:
        OSError: the file system refused.
    """
    state = {
        key: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in module.state_dict().items()
    }
    # One entry and no more: safetensors writes several in an order that changes from process to process.
    write_tensors(path, state, {_BANDS_KEY: ",".join(bands)} if bands else {"format": "pt"})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all; an earlier file of that name is replaced.

    Args:
        path: the file to write.
        tensors: contiguous, on the CPU.
        metadata: of the file's header.

    Raises:
        OSError: the file system refused; ``filename`` is ``path``, and an earlier file is left as it was.
    """
    try:
        with whole_file(path) as partial:
            save_file(dict(tensors), partial, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # the library wraps what the system said in words
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def load_weights(module: nn.Module, path: Path, *, drop_classifier: bool = False) -> None:
    """Load weights into a module, strictly: every key must be there, no other, each of the right shape.

    Args:
        module: the module to fill.
        path: a ``.safetensors`` file; also ``.pth`` or ``.pt`` as torchvision keeps them, read with torch's
            restricted unpickler (tensors only, nothing is executed).
        drop_classifier: leave out the classifier that files of published weights hold; ``module`` is then a backbone
            that ``network.build`` built.

    Raises:
        BackboneError: the file is missing or unreadable, or does not fit; the message says where they differ.
    """
    state = _read_state(path)
    if drop_classifier:
        state = _without_classifier(state, spec_of_network(module).classifier)
    _require_fit(module, state, path)
    module.load_state_dict(state, strict=True)


def require_unchanged(path: Path, md5: str) -> None:
    """Refuse a file of a pretraining that is not the one that its run recorded.

    Args:
        path: the file.
        md5: its digest as ``runs.json`` records it, in hex.

    Raises:
        BackboneError: it is missing, or its bytes are others.
    """
    found = file_md5(path) if path.is_file() else "no file"
    if found != md5:
        raise BackboneError(
            f"{path}: damaged or replaced since the pretraining wrote it: found {found}, expected the md5 {md5}. "
            "Run `geokr pretrain --force`; it trains again only what it has not kept whole."
        )


def _without_classifier(state: Mapping[str, Tensor], beginnings: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


def _require_fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    spec = getattr(module, "spec", None)
    classifier = spec.classifier if isinstance(spec, ArchitectureSpec) else ()
    complaints = _differences(module.state_dict(), state, classifier)
    if complaints:
        raise BackboneError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(complaints)}. "
            "Weights must have the upstream's key names for the very architecture and number of bands."
        )


def load_initial_weights(
    module: nn.Module, weights: Path | Literal["imagenet"], architecture: str, bands: Sequence[str]
) -> None:
    """Start a backbone from given weights, whatever bands the data has.

    The rule for the first layer, where the data has other bands than the file: a band of the same name keeps its
    filters, every other band gets the mean of the file's, and where the number of bands differs, from F to C, all are
    scaled by F / C, so that the sum over the bands stays as large as the later layers expect. Weights that were saved
    here say which bands they are for; a file that does not say so and has three is taken for red, green and blue.

    Args:
        module: what `build` returned.
        weights: a file as for `load_weights`, a classifier in it is left out; ``imagenet``: see `imagenet_weights`.
        architecture: of the module.
        bands: common names of the data's bands.

    Raises:
        BackboneError: the weights are missing or unreadable, or do not fit.
    """
    spec = spec_of(architecture)
    path = imagenet_weights(architecture) if weights == "imagenet" else weights
    state = _without_classifier(_read_state(path), spec.classifier)
    key, theirs = f"{spec.first_layer}.weight", _bands_of(path)
    if key in state and state[key].ndim == 4 and state[key].shape[1] == len(theirs):
        state[key] = _filters_for(bands, theirs, state[key])
    _require_fit(module, state, path)
    module.load_state_dict(state, strict=True)


def _bands_of(path: Path) -> Sequence[str]:
    """Bands that a readable file of weights is for."""
    if path.suffix in {".pth", ".pt"}:
        return _RGB
    with safe_open(path, framework="pt") as stored:
        named = (stored.metadata() or {}).get(_BANDS_KEY)
    return named.split(",") if named else _RGB


def _filters_for(ours: Sequence[str], theirs: Sequence[str], filters: Tensor) -> Tensor:
    mean = filters.mean(dim=1)
    chosen = [filters[:, theirs.index(band)] if band in theirs else mean for band in ours]
    return torch.stack(chosen, dim=1) * (len(theirs) / len(ours))


def imagenet_weights(architecture: str, given: Mapping[str, Path] | None = None) -> Path:
    """The file of an architecture's ImageNet weights: a given one, or the published one in torch's cache.

    Nothing is downloaded.

    Args:
        architecture: as ``architectures.spec_of`` takes it.
        given: files by architecture, such as ``evaluation.imagenet_weights`` names; believed as they are.

    Raises:
        BackboneError: the architecture is not known, there are no such weights for it, the file is missing, or the
            published one is damaged: its name holds the first digits of its SHA-256.
    """
    path = (given or {}).get(architecture)
    if path is not None:
        if not path.is_file():
            raise BackboneError(
                f"{path}: no such file; it is named as the ImageNet weights of {architecture}. Correct the path in "
                f"`evaluation.imagenet_weights.{architecture}`."
            )
        return path
    name = spec_of(architecture).imagenet.file
    if name is None:
        raise BackboneError(
            f"There are no published ImageNet weights that {architecture} can start from; name a file "
            "(`pretraining.initial_weights`, `evaluation.imagenet_weights`)."
        )
    path = Path(str(torch.hub.get_dir())) / "checkpoints" / name
    if not path.is_file():
        raise BackboneError(
            f"{path}: the ImageNet weights of {architecture} are not there, and nothing is downloaded. Put the file there, "
            "set TORCH_HOME to where it is, or name a file (`pretraining.initial_weights`, "
            "`evaluation.imagenet_weights`)."
        )
    found, expected = sha256(path), path.stem.rpartition("-")[2]
    if not found.startswith(expected):
        raise BackboneError(
            f"{path}: damaged or another file: its SHA-256 begins with {found[: len(expected)]}, its name says {expected}. "
            "Download it again."
        )
    return path


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BackboneError(f"{path}: no such weights file; check the path, or leave it out to start from scratch.")
    if path.suffix in {".pth", ".pt"}:
        # weights_only: a checkpoint that carries code or foreign objects is refused, not run.
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise BackboneError(
                f"{path}: holds more than plain tensors and is refused. Save the `state_dict()` of the network alone."
            ) from error
        except (RuntimeError, ValueError, EOFError, OSError) as error:
            raise BackboneError(f"{path}: not a readable file of tensors ({error}); download it anew.") from error
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise BackboneError(f"{path}: expected a flat mapping of names to tensors; save `state_dict()` alone.")
        return dict(content)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path}: not a readable safetensors file ({error}); write or download it anew.") from error


def _differences(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], classifier: tuple[str, ...] = ()
) -> list[str]:
    complaints = []
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    if missing:
        complaints.append(f"{len(missing)} key(s) missing, such as {_sample(missing)}")
    if extra:
        complaints.append(f"{len(extra)} key(s) unknown, such as {_sample(extra)}")
        if classifier and all(key.startswith(classifier) for key in extra):
            complaints.append("those belong to a classifier: delete them, a backbone ends before it")
    reshaped = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    if reshaped:
        key = reshaped[0]
        complaints.append(
            f"{len(reshaped)} shape(s) differ, such as {key}: "
            f"found {tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}"
        )
        if wanted[key].ndim == 4 and wanted[key].shape[1] != found[key].shape[1] and len(reshaped) == 1:
            complaints.append(
                f"the file is for {found[key].shape[1]} bands and the data has {wanted[key].shape[1]}: "
                "choose `chips.bands` to match, or other weights"
            )
    return complaints


def _sample(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
