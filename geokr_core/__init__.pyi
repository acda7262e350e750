"""The public names with their types; ``__init__.py`` imports each when it is first used."""

from geokr_core.audit.run import audit_map as audit_map
from geokr_core.backbone.build import build_bundle as build_bundle
from geokr_core.backbone.bundle import open_bundle as open_bundle
from geokr_core.chain.params import load_params as load_params
from geokr_core.chain.run import run as run
from geokr_core.chain.run import run_step as run_step
from geokr_core.chain.status import status as status
from geokr_core.chips.cut import cut_chips as cut_chips
from geokr_core.embeddings.embed import embed_scenes as embed_scenes
from geokr_core.embeddings.read import open_embeddings as open_embeddings
from geokr_core.evaluation.evaluate import evaluate as evaluate
from geokr_core.land_cover.tile_index import index_products as index_products
from geokr_core.land_cover_shares.predict import predict_shares as predict_shares
from geokr_core.levir_kr.dataset import open_levir_kr as open_levir_kr
from geokr_core.levir_kr.freeze import freeze as freeze
from geokr_core.pretraining.pretrain import pretrain as pretrain
from geokr_core.proportions.count import count_proportions as count_proportions
from geokr_core.registry.champion import promote as promote
from geokr_core.report.page import write_report as write_report
from geokr_core.scenes.inventory import take_inventory as take_inventory
from geokr_core.search.find import search_archive as search_archive
from geokr_core.world.generate import generate_world as generate_world

__version__: str
__all__: list[str]
