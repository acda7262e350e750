"""Which catalogues there are, what their collections and assets are called, and what is asked of them.

Secrets stand nowhere in a file: a value may hold ``${NAME}``, which is read from the environment when a request is
made. No request is made here.
"""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from geokr_core.errors import ConfigError
from geokr_core.step.explain import explain
from geokr_core.step.section import Section
from geokr_core.step.strict_yaml import read_yaml

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class CatalogueCollection(Section):
    """One collection of a catalogue, in the catalogue's words and in those of the chain."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="name in the chain: folder, scene collection or product")
    collection: str = Field(min_length=1, description="the collection's id in the catalogue")
    kind: Literal["scenes", "land_cover"]
    bands: dict[str, str] = Field(
        default_factory=dict, description="scenes: common band name to asset key, in the order wanted"
    )
    quality: str | None = Field(None, description="scenes: asset key of the scene classification or quality band")
    land_cover: str | None = Field(None, description="scenes: name of the land-cover collection of the same ground")
    asset: str | None = Field(None, description="land_cover: asset key of the map")
    legend: str | None = Field(None, description="land_cover: legend of its codes, as in `land_cover.products`")
    year: int | None = Field(None, ge=1980, le=2100, description="land_cover: edition; items of that year are taken")
    whole_assets: bool = Field(
        False, description="download whole assets, verifying `file:checksum`, instead of reading windows"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "scenes" and not (self.bands and self.land_cover):
            raise ValueError(f"collection {self.name!r} of kind scenes needs `bands` and `land_cover`")
        if self.kind == "land_cover" and not (self.asset and self.legend and self.year):
            raise ValueError(f"collection {self.name!r} of kind land_cover needs `asset`, `legend` and `year`")
        bad = [name for name in self.bands if not re.fullmatch(r"[a-z0-9_]+", name)]
        if bad:
            raise ValueError(f"band names are lower-case words, found {bad}")
        return self


class Catalogue(Section):
    """A STAC API or a static catalogue."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    url: str = Field(description="root of the API or catalogue: http(s), or the path of a local catalog.json")
    headers: dict[str, str] = Field(
        default_factory=dict, description="sent to the catalogue's host and to `token_hosts`; values hold `${VARIABLE}`"
    )
    asset_query: str | None = Field(
        None, description="appended to asset addresses on the same hosts, e.g. a signature: `${VARIABLE}`"
    )
    token_hosts: tuple[str, ...] = Field((), description="further hosts that may see `headers` and `asset_query`")
    collections: tuple[CatalogueCollection, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _safe(self) -> Self:
        scheme = urlsplit(self.url).scheme
        if scheme not in ("http", "https", "", "file"):
            raise ValueError(f"`url` of {self.name!r}: http, https or a local path expected, found {scheme!r}")
        secrets = [*self.headers.values(), *([self.asset_query] if self.asset_query else [])]
        if any(not _VARIABLE.search(value) for value in secrets):
            raise ValueError(
                f"`headers` and `asset_query` of {self.name!r} must take their values from `${{VARIABLE}}`"
            )
        if secrets and scheme == "http" and urlsplit(self.url).hostname not in LOOPBACK:
            raise ValueError(f"{self.name!r} sends secrets: its `url` must be https")
        return self

    @property
    def is_remote(self) -> bool:
        """Whether the catalogue is read over the network."""
        return urlsplit(self.url).scheme in ("http", "https")

    @property
    def hosts(self) -> frozenset[str]:
        """Hosts (with port, where one is given) that may see the secrets."""
        return frozenset({urlsplit(self.url).netloc, *self.token_hosts} - {""})

    def secret_headers(self) -> dict[str, str]:
        """The headers with their variables filled in.

        Raises:
            ConfigError: a variable is not set.
        """
        return {key: _filled(value, self.name) for key, value in self.headers.items()}

    def secret_query(self) -> str:
        """The query that is appended to assets, filled in; empty where none is configured.

        Raises:
            ConfigError: a variable is not set.
        """
        return _filled(self.asset_query, self.name).lstrip("?&") if self.asset_query else ""


class FetchConfig(Section):
    """What to fetch and how politely."""

    catalogues: tuple[Catalogue, ...] = Field(min_length=1)
    collections: tuple[str, ...] = Field(
        min_length=1, description="names; the land cover of a scene collection is fetched with it"
    )
    bbox: tuple[float, float, float, float] = Field(
        description="west, south, east, north in degrees; west > east crosses the antimeridian"
    )
    dates: tuple[date, date] = Field(description="first and last day of acquisition, both included")
    max_cloud_cover_percent: float = Field(
        100.0, ge=0, le=100, description="scenes that say they are cloudier stay out"
    )
    max_items: int = Field(10, ge=1, description="of each scene collection, the least cloudy first")
    max_gb: float = Field(10.0, gt=0, description="larger plans are refused")
    connections: int = Field(2, ge=1, le=8, description="files read at the same time")
    attempts: int = Field(5, ge=1, le=20, description="tries of each request before it counts as failed")
    backoff_s: float = Field(1.0, ge=0, description="wait after the first failure; doubles each time")
    max_wait_s: int = Field(120, ge=1, description="longest wait that a server may ask for")
    timeout_s: float = Field(60.0, gt=0, description="silence after which a request counts as failed")
    skip_broken: bool = Field(False, description="leave out items that cannot be read instead of ending with an error")

    @field_validator("bbox")
    @classmethod
    def _on_earth(cls, value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        west, south, east, north = value
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90 and west != east):
            raise ValueError(
                "expected west,south,east,north in degrees with south < north, e.g. -112.9,37.1,-112.5,37.4"
            )
        return value

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.dates[0] > self.dates[1]:
            raise ValueError(f"dates: {self.dates[0]} lies after {self.dates[1]}")
        names = [c.name for catalogue in self.catalogues for c in catalogue.collections]
        if len(set(names)) < len(names):
            raise ValueError(f"collection names must differ over all catalogues, found {names}")
        known = {c.name: c for catalogue in self.catalogues for c in catalogue.collections}
        for name in self.collections:
            if name not in known:
                raise ValueError(f"collections: {name!r} is none of {names}")
            cover = known[name].land_cover
            if cover is not None and (cover not in known or known[cover].kind != "land_cover"):
                raise ValueError(f"land_cover of {name!r}: {cover!r} is no collection of kind land_cover")
        return self

    @property
    def wanted(self) -> list[tuple[Catalogue, CatalogueCollection]]:
        """The collections asked for and the land cover of their ground, each once, scenes first."""
        known = {c.name: (catalogue, c) for catalogue in self.catalogues for c in catalogue.collections}
        names = dict.fromkeys(self.collections)
        names |= dict.fromkeys(cover for name in self.collections if (cover := known[name][1].land_cover))
        return sorted((known[name] for name in names), key=lambda pair: pair[1].kind != "scenes")


def _filled(template: str, catalogue: str) -> str:
    missing = [name for name in _VARIABLE.findall(template) if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"catalogue {catalogue!r}: set the environment variable {missing[0]} that it takes its access from."
        )
    return _VARIABLE.sub(lambda match: os.environ[match[1]], template)


def load_catalogues(path: Path) -> tuple[Catalogue, ...]:
    """Read a file of catalogues, e.g. one made from ``params/catalogues.yaml``.

    Raises:
        ConfigError: the file is missing, not YAML, or holds a wrong key or value.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file of catalogues; docs/acquisition.md shows one.") from error
    if not isinstance(content, dict) or not isinstance(content.get("catalogues"), list):
        raise ConfigError(f"{path}: expected a list under `catalogues`; docs/acquisition.md shows one.")
    try:
        return tuple(Catalogue.model_validate(entry) for entry in content["catalogues"])
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from error


def parse_request(
    catalogues: Sequence[Catalogue], collections: Sequence[str], bbox: str, dates: str, limits: Mapping[str, Any]
) -> FetchConfig:
    """A request in the words of the command line.

    Args:
        catalogues: from `load_catalogues`.
        collections: names of collections in them.
        bbox: ``west,south,east,north``.
        dates: ``first/last`` or one day, ISO.
        limits: further fields of `FetchConfig`.

    Raises:
        ConfigError: something does not read as it should; the message names it.
    """
    first, _, last = dates.partition("/")
    try:
        return FetchConfig.model_validate(
            {
                "catalogues": catalogues,
                "collections": collections,
                "bbox": bbox.split(","),
                "dates": (first, last or first),
                **limits,
            }
        )
    except ValidationError as error:
        raise ConfigError(f"the request: {explain(error)}") from error
