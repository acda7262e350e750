"""A frozen data set of a few chips for each module of tests."""

import pytest

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.testing import make_levir_kr


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    """As many chips as the module's ``NUM_CHIPS`` says."""
    store = tmp_path_factory.mktemp("store")
    return make_levir_kr(store, num_chips=getattr(request.module, "NUM_CHIPS", 64), chip_size_px=32)
