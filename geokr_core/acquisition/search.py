"""Items of a collection over an area and a span of days, from a STAC API or by walking a static catalogue.

An API is searched through pystac-client. A static catalogue is walked link by link, and bounding box, footprint and
dates are compared here. Items are returned in an order that does not depend on the server's.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pystac
import shapely
from pystac.errors import STACError
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning

from geokr_core.acquisition.catalogues import Catalogue, CatalogueCollection, FetchConfig
from geokr_core.acquisition.web import Web, shown
from geokr_core.errors import AcquisitionError
from geokr_core.rasters.grid import unwrap_lon

_MAX_PAGES = 100_000
"""Documents of a static catalogue that are read before the walk counts as endless."""


@dataclass(frozen=True)
class Area:
    """A box in degrees; ``east`` runs beyond 180 where the box crosses the antimeridian."""

    west: float
    south: float
    east: float
    north: float

    @classmethod
    def of(cls, bbox: tuple[float, float, float, float]) -> "Area":
        """From west, south, east, north, where west > east means across the antimeridian."""
        west, south, east, north = bbox
        return cls(west, south, east + 360.0 if west > east else east, north)

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """West, south, east, north within ±180, west > east across the antimeridian."""
        if self.east - self.west >= 360.0:
            return (-180.0, self.south, 180.0, self.north)
        west, east = (round((lon + 180.0) % 360.0 - 180.0, 12) for lon in (self.west, self.east))
        return (west, self.south, 180.0 if east == -180.0 else east, self.north)

    @property
    def boxes(self) -> shapely.MultiPolygon:
        """The area once a turn either side, so that footprints of any longitude convention meet it."""
        return shapely.MultiPolygon(
            [shapely.box(self.west + turn, self.south, self.east + turn, self.north) for turn in (-360.0, 0.0, 360.0)]
        )

    def with_outline(self, lonlat: np.ndarray) -> "Area":
        """Grown to hold an outline, float64 (N, 2) in degrees of any turn."""
        finite = lonlat[np.isfinite(lonlat).all(axis=1)]
        lon = unwrap_lon(finite[:, 0], (self.west + self.east) / 2)
        south, north = max(-90.0, float(finite[:, 1].min())), min(90.0, float(finite[:, 1].max()))
        return Area(
            min(self.west, float(lon.min())),
            min(self.south, south),
            max(self.east, float(lon.max())),
            max(self.north, north),
        )


class _CatalogueIO(StacApiIO):
    """Reads a catalogue's documents; a remote catalogue can send it to no local file."""

    def __init__(self, web: Web, remote: bool, timeout_s: float) -> None:
        super().__init__(timeout=timeout_s, max_retries=None)
        self.session = web.session
        self._remote = remote

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """Read one document."""
        href = str(source.get_absolute_href() if isinstance(source, pystac.Link) else source)
        if self._remote and urlsplit(href).scheme not in ("http", "https"):
            raise AcquisitionError(f"{shown(href)}: a link of this kind is never followed; expected http(s).")
        return str(super().read_text(source, *args, **kwargs))


def find_items(
    catalogue: Catalogue, collection: CatalogueCollection, web: Web, config: FetchConfig, area: Area
) -> list[pystac.Item]:
    """Items of a collection over the area: scenes of the dates asked for, land cover of its edition year.

    Args:
        catalogue: where to look.
        collection: what to look for.
        web: the catalogue's requests.
        config: dates, cloud cover and number of scenes.
        area: what the items must meet.

    Returns:
        Items with distinct ids: scenes the least cloudy first and at most ``max_items``; land cover by id.

    Raises:
        AcquisitionError: the catalogue cannot be read or has no such collection.
    """
    scenes = collection.kind == "scenes"
    year = collection.year or 0
    span = config.dates if scenes else (date(year, 1, 1), date(year, 12, 31))
    io = _CatalogueIO(web, catalogue.is_remote, config.timeout_s)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PystacClientWarning)  # a static catalogue conforms to no API; that is fine
            client = Client.open(catalogue.url, stac_io=io)
            if client.conforms_to("ITEM_SEARCH"):
                found = _search(client, collection.collection, area, span)
            else:
                found = _walk(client, collection.collection, area)
            # A server may read bbox and dates more generously than asked; the same rule is applied to all.
            items = {item.id: item for item in found if _meets(item, area, span)}
    except (APIError, STACError, OSError, ValueError, KeyError, TypeError) as error:
        raise AcquisitionError(
            f"{shown(catalogue.url)}: the catalogue cannot be read ({type(error).__name__}: {_first_line(error)})."
        ) from None
    if not scenes:
        return [items[name] for name in sorted(items)]
    clear = [item for item in items.values() if _cloud_cover(item) <= config.max_cloud_cover_percent]
    return sorted(clear, key=lambda item: (_cloud_cover(item), item.id))[: config.max_items]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200].partition("?")[0]


def _search(client: Client, collection: str, area: Area, span: tuple[date, date]) -> Iterator[pystac.Item]:
    west, south, east, north = area.bbox
    # Not every API knows a box across the antimeridian; two boxes they all know.
    halves = (
        [(west, south, east, north)] if west <= east else [(west, south, 180.0, north), (-180.0, south, east, north)]
    )
    dates = f"{span[0].isoformat()}T00:00:00Z/{span[1].isoformat()}T23:59:59Z"
    for bbox in halves:
        yield from client.search(collections=[collection], bbox=bbox, datetime=dates, limit=100).items()


def _walk(client: Client, collection: str, area: Area) -> Iterator[pystac.Item]:
    pending: list[tuple[pystac.Catalog, bool]] = [(client, client.id == collection)]
    seen: set[str] = set()
    known: list[str] = []
    while pending:
        node, inside = pending.pop()
        if isinstance(node, pystac.Collection):
            known.append(node.id)
            inside = inside or node.id == collection
            if not _extent_meets(node, area):
                continue
        for link in _new_links(node, inside, seen):
            target = link.resolve_stac_object(root=client).target
            if isinstance(target, pystac.Item):
                yield target
            elif isinstance(target, pystac.Catalog):
                pending.append((target, inside))
    if collection not in known:
        raise AcquisitionError(
            f"{shown(str(client.self_href))}: no collection {collection!r}; it holds {', '.join(sorted(known)) or 'none'}."
        )


def _new_links(node: pystac.Catalog, inside: bool, seen: set[str]) -> Iterator[pystac.Link]:
    """Links to children, and to items where they are wanted, each address once: a catalogue may link in circles."""
    for link in list(node.links):
        href = str(link.get_absolute_href())
        if link.rel == "child" or (link.rel == "item" and inside):
            if href in seen:
                continue
            seen.add(href)
            if len(seen) > _MAX_PAGES:
                raise AcquisitionError(
                    f"{shown(href)}: more than {_MAX_PAGES} documents; name a catalogue nearer to the data."
                )
            yield link


def _extent_meets(collection: pystac.Collection, area: Area) -> bool:
    boxes = [_box(bbox) for bbox in collection.extent.spatial.bboxes]
    return not boxes or any(area.boxes.intersects(box) for box in boxes)


def _box(bbox: list[float]) -> shapely.Polygon:
    west, south, east, north = bbox if len(bbox) == 4 else (bbox[0], bbox[1], bbox[3], bbox[4])
    return shapely.box(west, south, east + 360.0 if west > east else east, north)


def _meets(item: pystac.Item, area: Area, span: tuple[date, date]) -> bool:
    first, last = item_span(item)
    if first.date() > span[1] or last.date() < span[0]:
        return False
    if item.bbox is not None and not area.boxes.intersects(_box(item.bbox)):
        return False
    return item.geometry is None or bool(area.boxes.intersects(shapely.geometry.shape(item.geometry)))


def item_span(item: pystac.Item) -> tuple[datetime, datetime]:
    """First and last moment of an item, in UTC.

    Raises:
        AcquisitionError: the item has neither ``datetime`` nor both ends.
    """
    first = item.common_metadata.start_datetime or item.datetime
    last = item.common_metadata.end_datetime or item.datetime
    if first is None or last is None:
        raise AcquisitionError(f"item {item.id!r}: it has no date at all; a STAC item must have one.")
    return tuple(t.astimezone(UTC) if t.tzinfo else t.replace(tzinfo=UTC) for t in (first, last))  # type: ignore[return-value]


def _cloud_cover(item: pystac.Item) -> float:
    properties: Mapping[str, Any] = item.properties
    value = properties.get("eo:cloud_cover")
    return float(value) if isinstance(value, int | float) else 0.0
