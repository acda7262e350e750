"""Vectors of the same chips by further networks, beside those of this chain: what one network does not see another may.

How their opinions are brought together is in ``disagreement``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from geokr_core.audit.pairs import Pairs
from geokr_core.embeddings.read import open_embeddings
from geokr_core.errors import AuditError

OTHER_NETWORKS: Final = "other_networks"
"""Key of what is told of the further networks, in ``Pairs.network`` and in ``audit.json``."""

_IDENTITY: Final = ("model", "model_version", "features")


def with_other_networks(pairs: Pairs, folders: Sequence[Path]) -> Pairs:
    """Chips with the vectors of further networks.

    Args:
        pairs: the audited chips, with the vectors of one network.
        folders: of vectors of the same chips, one a further network.

    Raises:
        MissingInputError: there are no vectors in a folder.
        DamagedOutputError: a file is not what was written.
        EmbeddingsError: a folder mixes vectors of two networks.
        AuditError: a folder is of a network that is already there, of chips of another size, or lacks some of the chips.
    """
    if not folders:
        return pairs
    networks, features = [pairs.network], [*pairs.features]
    for folder in folders:
        found = open_embeddings(folder, pairs.chips["scene_id"].unique().tolist())
        if any(_identity(found.network) == _identity(one) for one in networks):
            raise AuditError(
                f"{folder}: vectors of {found.network['model']} {found.network['model_version']} ({found.network['features']}), which are "
                "there already: the same network a second time adds nothing. Leave it out of `map_audit.other_embeddings`."
            )
        ours, theirs = pairs.network["chip_size_px"], found.network["chip_size_px"]
        if ours != theirs:
            raise AuditError(
                f"{folder}: vectors of chips of {theirs} px, those of {pairs.network['model']} are of {ours} px. Networks that are asked "
                "together look at the same chips: embed both with the same `chips`."
            )
        positions = {name: k for k, name in enumerate(found.chips["chip_id"])}
        order = np.array([positions.get(name, -1) for name in pairs.chips["chip_id"]])
        if (order < 0).any():
            raise AuditError(
                f"{folder}: has no vector of {(order < 0).sum()} of the {len(order)} audited chips, {pairs.chips['chip_id'].iloc[int((order < 0).argmax())]!r} first. "
                "Embed the same scenes, cut with the same `chips`, or leave the folder out of `map_audit.other_embeddings`."
            )
        networks.append(found.network)
        features.append(found.vectors[order])
    others = [{key: one[key] for key in _IDENTITY} for one in networks[1:]]
    return replace(pairs, features=tuple(features), network={**pairs.network, OTHER_NETWORKS: others})


def _identity(network: dict[str, object]) -> tuple[object, ...]:
    return tuple(network[key] for key in _IDENTITY)
