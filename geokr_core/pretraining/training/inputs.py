"""What the networks are shown of a batch: augmented chips, and the land cover of the ground that is shown.

Not here: which chips a batch holds (``batches``); how pixels are varied (``networks.augmentation``).
"""

import hashlib

import torch
from torch import Tensor

from geokr_core.networks.augmentation import Geometry, cells_under, colour_view, draw, geometry_of, seen
from geokr_core.networks.normalisation import Normalisation
from geokr_core.pretraining.labels import CELLS_HALF_WEIGHT
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.training.batches import Batch
from geokr_core.pretraining.training.state import Run


def generator_of(seed: int, step: int) -> torch.Generator:
    """The generator of one step's augmentation: a pure function of seed and step, whatever came before."""
    digest = hashlib.sha256(f"augment/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def inputs_of(run: Run, batch: Batch, part: slice, normalisation: Normalisation) -> Inputs:
    """Augment chips of a batch and look up what is known of the ground that is shown.

    Land-cover methods show student and teacher the same crop in two colour variants, so that the label holds for both;
    contrastive methods crop both views independently. Where both are learned, the student sees both crops, each with the
    land cover of exactly its area.

    Args:
        run: its recipe says how.
        batch: chips of this process.
        part: which of them, counted within this process; a slice, so that pinned memory stays pinned.
        normalisation: channel statistics on the device.
    """
    recipe, device, strength = run.recipe, run.runtime.device, run.recipe.augmentation
    generator, size, bands = generator_of(run.seed, batch.step), run.config.batch_size, run.data.bands
    places = run.places()[part]
    # Always both views, for the whole batch: neither the number of processes nor of parts changes a draw.
    first, second = (draw(size, len(bands), generator).of(places) for _ in range(2))
    images = batch.images[part].to(device, non_blocking=True)
    geometry = geometry_of(first, strength, device)
    planes = seen(images, geometry)
    student = teacher = colour_view(planes, bands, normalisation, strength, first)
    cells = None if batch.cells is None else batch.cells[part].to(device, non_blocking=True)
    rows = torch.from_numpy(batch.rows)[part].to(device, non_blocking=True)
    if recipe.contrast_weight > 0 or not recipe.has_land_cover_head:
        other = geometry_of(second, strength, device)
        teacher = colour_view(seen(images, other), bands, normalisation, strength, second)
        if recipe.contrast_weight > 0:
            student = teacher = torch.cat([student, teacher])
            geometry, rows = geometry.beside(other), rows.repeat(2)
            cells = None if cells is None else cells.repeat(2, 1, 1, 1)
    elif recipe.two_views and recipe.teacher_predicts:
        teacher = colour_view(planes, bands, normalisation, strength, second)
    labels, weights = labels_of(run, rows, cells, geometry)
    types = None if run.types is None else run.types[rows]
    audit_weights = None if run.audit_weights is None else run.audit_weights[rows]
    return Inputs(student, teacher, geometry, labels, weights, cells, types, audit_weights)


def labels_of(run: Run, rows: Tensor, cells: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    """Land cover of what is shown of chips, and how much it counts.

    A crop has the proportions of the known ground that it shows. Its weight falls, as that of a chip does, with the share of
    ground whose land cover is known and with the number of land-cover cells that voted.

    Args:
        run: labels and weights of whole chips.
        rows: int64 (B,) on the device.
        cells: uint8 (B, n, n, K) on the device, or None.
        geometry: what is shown.

    Returns:
        float32 (B, K), rows of zeros where nothing is known; float32 (B,), or None where all count alike.
    """
    weights = None if run.weights is None else run.weights[rows]
    if not run.recipe.label_follows_crop or cells is None or geometry.boxes is None:
        return run.labels[rows], weights
    shares = cells_under(cells, geometry, 1)[:, 0, 0]
    known = shares.sum(dim=1)
    labels = shares / known.clamp_min(1e-6)[:, None]
    if weights is not None:
        known_of_chip = cells.float().sum(dim=3).mean(dim=(1, 2)).clamp_min(1e-6) / 255.0
        box = geometry.boxes
        area, voted = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]), run.num_cells[rows]
        saturation = area * (voted + CELLS_HALF_WEIGHT) / (area * voted + CELLS_HALF_WEIGHT)
        weights = weights * (known / known_of_chip) * saturation
    return labels, weights
