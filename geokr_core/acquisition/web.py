"""Every request of an acquisition: retries that wait as long as the server asks, and secrets that go to one host only.

Small things (catalogue pages, the first bytes of an asset, whole assets) go through one ``requests`` session; windows
are read by GDAL's ``/vsicurl/`` between two of the session's requests. Addresses are shown and recorded without their
query, which may hold a signature.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import rasterio
import requests
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from geokr_core import __version__
from geokr_core.acquisition.catalogues import LOOPBACK, Catalogue, FetchConfig
from geokr_core.errors import AcquisitionError
from geokr_core.rasters.open_raster import DRIVERS
from geokr_core.step.digests import mismatch

T = TypeVar("T")

USER_AGENT = f"geokr/{__version__}"
_RETRIED = (408, 429, 500, 502, 503, 504)
_MAGIC = {b"II*\x00": ".tif", b"MM\x00*": ".tif", b"II+\x00": ".tif", b"MM\x00+": ".tif", b"\x00\x00\x00\x0c": ".jp2"}
_MAGIC_BYTES = 16
_CHUNK_BYTES = 1 << 18


class _HostBoundAdapter(HTTPAdapter):
    """Adds the secret headers on the wire, to listed hosts only: no log of requests sees them, no redirect carries them."""

    def __init__(self, retry: Retry, headers: dict[str, str], hosts: frozenset[str]) -> None:
        self._secret_headers, self._hosts = headers, hosts
        super().__init__(max_retries=retry)

    def add_headers(self, request: requests.PreparedRequest, **kwargs: Any) -> None:
        """Called by ``send`` for each request and each redirect."""
        if may_see_secrets(request.url or "", self._hosts):
            request.headers.update(self._secret_headers)
            return
        # A redirect begins with a copy of the first request's headers.
        for key in self._secret_headers:
            request.headers.pop(key, None)


def may_see_secrets(url: str, hosts: frozenset[str]) -> bool:
    """Whether an address is one of the listed hosts, over https or on this machine."""
    parts = urlsplit(url)
    return parts.netloc in hosts and (parts.scheme == "https" or parts.hostname in LOOPBACK)


def shown(address: str) -> str:
    """An address without user, query and fragment."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.netloc else address


@dataclass(frozen=True)
class Address:
    """Where an asset lies now.

    Attributes:
        url: final address after redirects, or the path of a local file.
        suffix: ``.tif`` or ``.jp2`` by its first bytes.
        num_bytes: length, or None where the server does not say.
        ranges: whether parts can be read.
        etag: what names this version of it, or empty.
    """

    url: str
    suffix: str
    num_bytes: int | None
    ranges: bool
    etag: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether it is read over the network."""
        return urlsplit(self.url).scheme in ("http", "https")


class Web:
    """The requests to one catalogue and its assets; see the module."""

    def __init__(self, catalogue: Catalogue, config: FetchConfig) -> None:
        """Prepare the session; nothing is requested.

        Raises:
            ConfigError: an environment variable that holds a secret is not set.
        """
        self._config, self._catalogue = config, catalogue
        self._headers, self._query = catalogue.secret_headers(), catalogue.secret_query()
        if self._query:
            # At their lowest level these write whole addresses into the log.
            for name in ("rasterio", "urllib3"):
                logging.getLogger(name).setLevel(logging.INFO)
        self.session = requests.Session()
        self.session.headers["User-Agent"] = USER_AGENT
        self.mount(self.session)

    def retry(self) -> Retry:
        """Back-off that honours ``Retry-After``, also of searches, which are sent as POST."""
        return Retry(
            total=self._config.attempts - 1,
            allowed_methods=None,
            status_forcelist=_RETRIED,
            backoff_factor=self._config.backoff_s,
            backoff_max=self._config.max_wait_s,
            retry_after_max=self._config.max_wait_s,
            respect_retry_after_header=True,
        )

    def mount(self, session: requests.Session) -> None:
        """Give a session this catalogue's retries and secrets."""
        adapter = _HostBoundAdapter(self.retry(), self._headers, self._catalogue.hosts)
        session.mount("http://", adapter)
        session.mount("https://", adapter)

    def wait(self, attempt: int) -> None:
        """Wait before another attempt: ``backoff_s``, then twice, four times as long, up to ``max_wait_s``."""
        time.sleep(min(self._config.backoff_s * 2**attempt, float(self._config.max_wait_s)))

    def locate(self, href: str) -> Address:
        """Ask for the first bytes of an asset: is it there, is it a raster, how long is it, can parts be read?

        Raises:
            AcquisitionError: the address is of a kind that is never opened, the server refuses, or it is no raster.
        """
        scheme = urlsplit(href).scheme
        if scheme in ("http", "https"):
            return self._locate_remote(self._signed(href))
        if scheme not in ("", "file") or self._catalogue.is_remote or href.startswith(("/vsi", "\\")):
            raise AcquisitionError(
                f"{shown(href)}: an asset address of this kind is never opened; expected http(s)"
                + ("." if self._catalogue.is_remote else " or a plain path beside the local catalogue.")
            )
        path = Path(unquote(urlsplit(href).path) if scheme == "file" else href)
        try:
            with path.open("rb") as stream:
                first = stream.read(_MAGIC_BYTES)
        except OSError as error:
            raise AcquisitionError(f"{path}: cannot be read: {error.strerror}.") from error
        return Address(str(path), _suffix(first, str(path), "a local file"), path.stat().st_size, True)

    def _signed(self, href: str) -> str:
        if not self._query or not may_see_secrets(href, self._catalogue.hosts):
            return href
        return f"{href}{'&' if urlsplit(href).query else '?'}{self._query}"

    def _locate_remote(self, url: str) -> Address:
        with self.get(url, {"Range": f"bytes=0-{_MAGIC_BYTES - 1}"}) as response:
            first = next(response.iter_content(_MAGIC_BYTES), b"")
            ranges = response.status_code == requests.codes.partial_content
            length = response.headers.get("Content-Range", "").rpartition("/")[2]
            length = length if ranges else response.headers.get("Content-Length", "")
            suffix = _suffix(first, url, response.headers.get("Content-Type", "no content type"))
            etag = response.headers.get("ETag", "")
            return Address(response.url, suffix, int(length) if length.isdigit() else None, ranges, etag)

    @contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """A streamed GET that succeeded.

        Raises:
            AcquisitionError: no answer, or an answer that says no; with the address as `shown`.
        """
        # Compressed transfers would make lengths and ranges speak of other bytes than the file's.
        headers = {"Accept-Encoding": "identity", **headers}
        try:
            with self.session.get(url, headers=headers, stream=True, timeout=self._config.timeout_s) as response:
                if not response.ok:
                    hint = " Set the access that the catalogue asks for." if response.status_code in (401, 403) else ""
                    raise AcquisitionError(
                        f"{shown(url)}: the server answered {response.status_code} {response.reason}.{hint}"
                    )
                yield response
        except requests.RequestException as error:
            cause = type(error).__name__
            raise AcquisitionError(
                f"{shown(url)}: no usable answer after {self._config.attempts} attempt(s) ({cause}); "
                "run the same command again later: finished files are kept."
            ) from None  # the chained message may hold the signed address

    def download(self, address: Address, to: Path, checksum: str | None, max_bytes: int) -> None:
        """Download a whole asset, going on where a cut connection left off.

        Args:
            address: from `locate`.
            to: file to write.
            checksum: ``file:checksum`` of the catalogue (a multihash in hex), or None.
            max_bytes: more is refused.

        Raises:
            AcquisitionError: it cannot be read, is larger than allowed, or its checksum is not the catalogue's.
        """
        have, failure = 0, ""
        with to.open("wb") as target:
            for attempt in range(self._config.attempts):
                if attempt:
                    self.wait(attempt - 1)
                have, failure = self._resume(address, target, have, max_bytes)
                if not failure:
                    break
        if failure:
            raise AcquisitionError(f"{shown(address.url)}: {failure} after {self._config.attempts} attempt(s).")
        if checksum is not None:
            verify_multihash(to, checksum, shown(address.url))

    def _resume(self, address: Address, target: Any, have: int, max_bytes: int) -> tuple[int, str]:
        headers = {"Range": f"bytes={have}-"} if have and address.ranges else {}
        if headers and address.etag:
            headers["If-Range"] = address.etag
        with self.get(address.url, headers) as response:
            if response.status_code != requests.codes.partial_content:
                have = 0
            target.seek(have)
            target.truncate()
            try:
                for chunk in response.iter_content(_CHUNK_BYTES):
                    have += len(chunk)
                    if have > max_bytes:
                        raise AcquisitionError(
                            f"{shown(address.url)}: longer than the {max_bytes} bytes that were announced or allowed."
                        )
                    target.write(chunk)
            except requests.RequestException as error:
                return have, f"the connection broke at byte {have} ({type(error).__name__})"
        target.flush()
        if address.num_bytes is not None and have != address.num_bytes:
            return have, f"{have} of {address.num_bytes} bytes arrived"
        return have, ""

    def read(self, href: str, action: Callable[[Address, DatasetReader], T]) -> T:
        """Open an asset where it lies and do something with it, again after a wait where a read fails.

        Args:
            href: address in the catalogue.
            action: what to do; called again from the start after a failed read, so it must know what it has done.

        Returns:
            What ``action`` returned.

        Raises:
            AcquisitionError: the asset cannot be had, or could not be read in ``attempts`` tries.
        """
        failure = ""
        for attempt in range(self._config.attempts):
            if attempt:
                self.wait(attempt - 1)
            address = self.locate(href)
            name = f"/vsicurl/{address.url}" if address.is_remote else address.url
            try:
                with self.gdal(address), rasterio.open(name, driver=DRIVERS[address.suffix]) as source:
                    return action(address, source)
            except (RasterioError, CRSError) as error:
                failure = str(error).replace(name, shown(href)).replace(address.url, shown(href)).splitlines()[0]
        raise AcquisitionError(
            f"{shown(href)}: could not be read in {self._config.attempts} attempt(s) ({failure}); "
            "run the same command again later: finished files are kept."
        )

    @contextmanager
    def gdal(self, address: Address) -> Iterator[None]:
        """GDAL's settings for reading one address: that file alone, with time-outs, no guessing beside it.

        GDAL does not see ``Retry-After``; it therefore does not retry. Whoever reads retries after `wait` and `locate`,
        which do as the server asks.
        """
        options: dict[str, Any] = {
            "GDAL_HTTP_MAX_RETRY": 0,
            "GDAL_HTTP_TIMEOUT": int(max(self._config.timeout_s, 1)) * 4,
            "GDAL_HTTP_CONNECTTIMEOUT": int(max(self._config.timeout_s, 1)),
            "GDAL_HTTP_LOW_SPEED_TIME": int(max(self._config.timeout_s, 1)),
            "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
            "GDAL_HTTP_USERAGENT": USER_AGENT,
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
            "CPL_VSIL_CURL_ALLOWED_FILENAME": f"/vsicurl/{address.url}",
            # An attempt must not be answered from the memory of the failed one.
            "CPL_VSIL_CURL_NON_CACHED": f"/vsicurl/{address.url}",
            "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
        }
        if not (self._headers and may_see_secrets(address.url, self._catalogue.hosts)):
            with rasterio.Env(**options):
                yield
            return
        # A file only this user can read, not an option: options are logged.
        descriptor, name = tempfile.mkstemp(prefix="geokr-headers-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.writelines(f"{key}: {value}\n" for key, value in self._headers.items())
            with rasterio.Env(GDAL_HTTP_HEADER_FILE=name, **options):
                yield
        finally:
            Path(name).unlink(missing_ok=True)


def _suffix(first: bytes, address: str, kind: str) -> str:
    suffix = _MAGIC.get(first[:4])
    if suffix is None:
        raise AcquisitionError(
            f"{shown(address)}: not a GeoTIFF or JPEG 2000 but {kind} that begins with {first[:12]!r}; "
            "a login page? Check the asset key and the access that the catalogue asks for."
        )
    return suffix


def verify_multihash(path: Path, checksum: str, where: str) -> None:
    """Compare a file with a ``file:checksum``.

    Raises:
        AcquisitionError: the bytes are others, or the multihash is of a kind that cannot be computed.
    """
    if problem := mismatch(path, checksum):
        raise AcquisitionError(
            f"{where}: {problem}; the file was changed or damaged on its way. Run the same command again; if it stays "
            "so, tell the catalogue's keepers."
        )
