"""Every architecture from its first step to each task: what the table of ``docs/architectures.md`` is made of.

    python -m geokr_core.bench.architectures docs/architectures.md

Images are tiny and nothing is learned: this shows that an architecture goes all the way and that the libraries compute the
same from its delivered weights, not how good it is.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import nn

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.bundle import GOLDEN, WEIGHTS, open_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.bench.page import written_between
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.evaluate import evaluate
from geokr_core.networks.architectures import ARCHITECTURES, spec_of
from geokr_core.networks.network import build, pooled
from geokr_core.networks.runtime import one_thread
from geokr_core.networks.weights import load_weights
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter, Reporter
from geokr_core.testing import make_box_set, make_image_set, make_levir_kr, make_mask_set

BEGIN: Final = "<!-- table of architectures: begin -->"
END: Final = "<!-- table of architectures: end -->"

_LIBRARIES: Final = ("torchvision", "timm", "smp")
_TASKS: Final = (
    {"name": "scene_classification", "kind": "scene_classification", "image_size_px": 32},
    {"name": "segmentation", "kind": "segmentation", "crop_size_px": 32, "decoder_channels": 32},
    {"name": "cloud_snow", "kind": "cloud_snow", "crop_size_px": 32, "decoder_channels": 32},
    {"name": "detection", "kind": "detection", "image_size_px": 64, "decoder_channels": 32},
)


@dataclass(frozen=True)
class Made:
    """What the architectures are tried on.

    Attributes:
        levir_kr: folder of a small frozen data set.
        sets: folder of one small labelled set a kind of task, by the name of the kind.
    """

    levir_kr: Path
    sets: Path


def make_inputs(folder: Path) -> Made:
    """Write the data set and the labelled sets."""
    dataset = make_levir_kr(folder, num_chips=16)
    sets = folder / "sets"
    make_image_set(sets / "scene_classification", images_per_class=4)
    make_mask_set(sets / "segmentation")
    make_mask_set(sets / "cloud_snow", sky=True)
    make_box_set(sets / "detection")
    return Made(dataset.folder, sets)


def deliver(architecture: str, made: Made, folder: Path) -> Path:
    """Pretrain for two steps and bundle what came out.

    Args:
        architecture: as ``architectures.spec_of`` takes it.
        made: data set.
        folder: gets ``pretraining`` and ``backbone``.

    Returns:
        The bundle, verified.

    Raises:
        GeoKRError: a step refuses.
    """
    config = PretrainingConfig.model_validate(
        {
            "architecture": architecture,
            "steps": 2,
            "batch_size": 4,
            "warmup_steps": 1,
            "log_every": 2,
            "precision": "fp32",
        }
    )
    reporter = RecordingReporter()
    pretrain(config, made.levir_kr, folder / "pretraining", folder / "checkpoints", reporter)
    build_bundle(BackboneConfig(), made.levir_kr, folder / "pretraining", folder / "backbone", reporter)
    return folder / "backbone"


def differences(bundle: Path, trained: Path) -> dict[str, float]:
    """Largest absolute difference of features, library by library, from those of the network that was trained.

    Args:
        bundle: the delivered folder.
        trained: weights as the pretraining left them.

    Returns:
        By library, in units of the largest feature (or 1 if that is less).

    Raises:
        BundleError: a library does not take the weights.
        RuntimeError: likewise.
    """
    opened, images = open_bundle(bundle), load_file(bundle / GOLDEN)["input"]
    original = build(opened.architecture, len(opened.bands))
    load_weights(original, trained)
    with one_thread(), torch.inference_mode():
        expected = pooled(original.eval(), images)
        found = {library: _features(library, bundle, images) for library in opened.libraries}
    scale = max(1.0, float(expected.abs().max()))
    return {library: float((features - expected).abs().max()) / scale for library, features in found.items()}


def _features(library: str, bundle: Path, images: torch.Tensor) -> torch.Tensor:
    if library == "smp":
        encoder = geokr_backbone.into_smp(bundle).get_submodule("encoder")
        return torch.as_tensor(encoder(images)[-1].mean(dim=(2, 3)))
    network: nn.Module = {"torchvision": geokr_backbone.into_torchvision, "timm": geokr_backbone.into_timm}[library](
        bundle
    )
    return torch.as_tensor(network(images))


def fine_tune_on_tasks(folder: Path, made: Made) -> dict[str, float]:
    """Fine-tune the delivered backbone for one step on each kind of task, and score it.

    Args:
        folder: what `deliver` wrote into.
        made: labelled sets.

    Returns:
        The first metric of each task, by its kind.

    Raises:
        GeoKRError: a task refuses.
    """
    config = EvaluationConfig.model_validate(
        {
            "folder": made.sets,
            "tasks": _TASKS,
            "initialisations": ["geokr"],
            "protocols": ["fine_tune"],
            "labels_per_class": ["all"],
            "label_fractions": [1.0],
            "seeds": [0],
            "fine_tune_steps": 1,
            "batch_size": 2,
            "threads": 1,
            "precision": "fp32",
        }
    )
    evaluate(
        config,
        folder / "backbone",
        folder / "pretraining",
        folder / "evaluation",
        folder / "cells",
        RecordingReporter(),
    )
    kept = [read_json(path) for path in (folder / "cells").iterdir()]
    return {cell["cell"]["task"]: cell["measurement"]["scores"][0]["value"] for cell in kept}


def table(rows: Mapping[str, tuple[Mapping[str, float], Sequence[str]]]) -> str:
    """The table as Markdown.

    Args:
        rows: by architecture the differences by library, and the kinds of task that it went through.
    """
    kinds = [str(task["kind"]) for task in _TASKS]
    lines = [
        f"| architecture | parameters (million) | features | stage channels | smallest image (px) | ImageNet weights | "
        f"{' | '.join(_LIBRARIES)} | {' | '.join(kinds)} |",
        "|---" * (6 + len(_LIBRARIES) + len(kinds)) + "|",
    ]
    for name, (found, done) in rows.items():
        spec = spec_of(name)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build(name).parameters()) / 1e6
        names = {upstream.library: upstream.name for upstream in spec.upstreams}
        cells = [
            f"`{name}`",
            f"{parameters:.2f}",
            str(spec.stage_channels[-1]),
            ", ".join(map(str, spec.stage_channels)),
            str(spec.min_size_px),
            f"`{spec.imagenet.file}`" if spec.imagenet.file else "–",
            *(f"`{names[library]}` {found[library]:.0e}" if library in names else "–" for library in _LIBRARIES),
            *("yes" if kind in done else "–" for kind in kinds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(page: Path, reporter: Reporter) -> None:
    """Try every architecture and write the table into a page, between its two marks.

    Args:
        page: a Markdown file that holds both marks.
        reporter: hears which architecture is next.

    Raises:
        GeoKRError: an architecture does not go all the way.
        ValueError: the page lacks a mark.
    """
    write = written_between(page, BEGIN, END)
    rows: dict[str, tuple[Mapping[str, float], Sequence[str]]] = {}
    with tempfile.TemporaryDirectory() as temporary, reporter.progress("architectures", len(ARCHITECTURES)) as advance:
        made = make_inputs(Path(temporary) / "made")
        for name in ARCHITECTURES:
            reporter.info(name)
            folder = Path(temporary) / name
            bundle = deliver(name, made, folder)
            trained = folder / "pretraining" / "geokr-seed0" / WEIGHTS
            rows[name] = (differences(bundle, trained), list(fine_tune_on_tasks(folder, made)))
            advance(1)
    write(f"\n\n{table(rows)}\n\n")


if __name__ == "__main__":
    from geokr_core.step.reporter import LOG

    torch.set_num_threads(1)
    write_page(Path(sys.argv[1]), LOG)
