"""The assets, one module a group; the groups in order tell what the project is for.

``raw_data`` → ``levir_kr`` → ``pretraining`` → ``applications``, ``evaluation`` → ``registry``
"""

import dagster as dg

from geokr_assets.assets import applications, evaluation, levir_kr, pretraining, raw_data, registry
from geokr_core.chain.params import Params
from geokr_core.chain.steps import STEPS, steps_of

Assets = list[dg.AssetsDefinition | dg.AssetSpec]


def build_assets(params: Params) -> Assets:
    """All assets of a parameter file.

    Args:
        params: decides whether the raw data are generated (an asset ``world``) or given (external assets), and whether
            there is an evaluation and a contest at all.
    """
    unwanted = {dg.AssetKey(name) for name in STEPS} - {dg.AssetKey(step.name) for step in steps_of(params)}
    groups = (raw_data, levir_kr, pretraining, applications, evaluation, registry)
    return [asset for group in groups for asset in group.build(params) if not unwanted & keys_of(asset)]


def keys_of(asset: dg.AssetsDefinition | dg.AssetSpec) -> set[dg.AssetKey]:
    """The keys of an asset's definition."""
    return {asset.key} if isinstance(asset, dg.AssetSpec) else set(asset.keys)
