"""One scene as a value: which files hold it, where its pixels lie, what its bands are. No file is opened here."""

from dataclasses import dataclass

from geokr_core.rasters.grid import Grid


@dataclass(frozen=True)
class Scene:
    """A scene that may be cut.

    Attributes:
        scene_id: unique name made from the path below the scene folder.
        collection: name of its collection.
        files: paths relative to the scene folder; one, or one a band.
        bands: common band names in the order they are read.
        grid: where its pixels lie; of a scene delivered in sensor geometry, the map grid it is orthorectified to.
        gsd_m: ground sampling distance at its centre in metres.
        acquired: ISO date, or empty where unknown.
        sensor: satellite and sensor, or the collection's name.
        land_cover: name of the product of its ground.
        nodata: value that marks no data where all bands have it and the file is silent, or None.
        max_abs_latitude_deg: chips beyond are not cut.
        md5: digest of the bytes of its files, with their side files, cloud mask and elevation model.
        product: how its files were recognised: ``generic``, ``gaofen``, ``sentinel2``, ``landsat_c2`` or ``naip``.
        product_id: the provider's name of the product; strips of one product share it. Empty where unknown.
        cloud_mask: file with the product's own classification, relative to the scene folder; empty where there is none.
        scales: ``stored * scale + offset`` is the physical value, one a band; empty where unknown. Never applied here.
        offsets: see ``scales``.
        orthorectified: whether its pixels are carried from sensor geometry to ``grid`` when they are read.
        rpc_height_m: constant height above the ellipsoid for that, or None.
        dem: path of an elevation model for that, or empty.
    """

    scene_id: str
    collection: str
    files: tuple[str, ...]
    bands: tuple[str, ...]
    grid: Grid
    gsd_m: float
    acquired: str
    sensor: str
    land_cover: str
    nodata: float | None
    max_abs_latitude_deg: float
    md5: str
    product: str = "generic"
    product_id: str = ""
    cloud_mask: str = ""
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    orthorectified: bool = False
    rpc_height_m: float | None = None
    dem: str = ""
