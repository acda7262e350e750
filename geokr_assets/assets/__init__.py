"""The assets, one module a group; the groups in order tell what the project is for.

``raw_data`` → ``levir_kr`` → ``pretraining`` → ``evaluation`` → ``registry``
"""

import dagster as dg

from geokr_assets.assets import evaluation, levir_kr, pretraining, raw_data, registry
from geokr_core.chain.params import Params

Assets = list[dg.AssetsDefinition | dg.AssetSpec]


def build_assets(params: Params) -> Assets:
    """All assets of a parameter file.

    Args:
        params: decides whether the raw data are generated (an asset ``world``) or given (external assets).
    """
    groups = (raw_data, levir_kr, pretraining, evaluation, registry)
    return [asset for group in groups for asset in group.build(params)]
