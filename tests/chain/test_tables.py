"""What is written about the columns of the chain's tables is what a finished store holds."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geokr_core.land_cover.product import open_land_cover
from geokr_core.step.tables import tables


def kind_of(name: str, found: pa.DataType) -> set[str]:
    """Words of ``tables.yaml`` that fit a type of arrow."""
    if pa.types.is_binary(found):
        return {"geometry"}
    if pa.types.is_struct(found):
        return {"box"}
    if pa.types.is_fixed_size_list(found):
        return {"vector of int8"}
    if pa.types.is_list(found):
        within = kind_of(name, found.value_type)
        return {f"list of {kind}" for kind in within}
    if pa.types.is_null(found):  # empty lists of every row
        return {"number", "string"}
    for test, kind in (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "integer"),
        (pa.types.is_floating, "number"),
        (pa.types.is_date, "date"),
    ):
        if test(found):
            return {kind}
    return {"string"} if pa.types.is_string(found) or pa.types.is_large_string(found) else {str(found)}


@pytest.mark.parametrize("name", tables())
def test_every_column_is_described_by_name_and_type(name: str, finished: Path) -> None:
    table = tables()[name]
    store = finished / "data" / "store"
    files = sorted((store / table.step).glob(table.file.replace("<scene>", "*")))
    assert files, table
    classes = open_land_cover(store / "land_cover").legend.classes
    described = {one: column.kind for column in table.columns for one in column.names(classes)}
    schema = pq.read_schema(files[0])
    assert set(schema.names) == set(described)
    wrong = {f.name: str(f.type) for f in schema if described[f.name] not in kind_of(f.name, f.type)}
    assert wrong == {}
    assert all(table.meaning(column) for column in schema.names)
    assert table.meaning("no_such_column") is None
