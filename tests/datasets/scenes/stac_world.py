"""A static STAC catalog as pystac writes it, of scenes some kilometers wide, and an API that searches its items."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import numpy as np
import pystac
import rasterio
from affine import Affine
from pyproj import Transformer
from shapely import box
from shapely.geometry import mapping

from datasets.range_server import RangeServer, Sent, _Handler
from terrafm_tg.modalities import MODALITIES

EPSG, X, Y = 32632, 701_460, 5_334_840  # upper left corner of the scenes, around the middle of a cell
#: Reflectance of a field in spring, in thousands of digital numbers, with the offset of baseline 04.00.
FIELD = dict(
    zip(MODALITIES["s2l2a"].bands, (300, 400, 700, 600, 1100, 2600, 3100, 3200, 3300, 3400, 2200, 1300), strict=True)
)
SHORT = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "nir08": "B8A", "swir16": "B11"}


def optics(band: str, side: int, seed: int = 0, offset: int = 1000) -> np.ndarray:
    """Digital numbers (h, w) of a band of a scene of ``side`` 10 m pixels: noise that does not compress."""
    held = MODALITIES["s2l2a"]
    res = 20 if band == "SCL" else held.resolutions[held.bands.index(band)]
    random = np.random.default_rng([seed, *band.encode()])
    if band == "SCL":
        return np.where(random.random((side // 2,) * 2) < 0.02, 9, 4).astype(np.uint8)
    size = side * 10 // res
    return (FIELD[band] * random.gamma(30, 1 / 30, (size, size)) + offset + 1).astype(np.uint16)


def radar(band: str, side: int, seed: int = 0) -> np.ndarray:
    """Linear power (h, w), the first rows missing."""
    power = np.random.default_rng([seed, *band.encode()]).gamma(4, 0.02 if band == "VV" else 0.005, (side, side))
    power[:3] = -32768
    return power.astype(np.float32)


def write_cog(path: Path, pixels: np.ndarray, res: float, **more) -> None:
    """A cloud-optimized GeoTIFF with blocks of 256 pixels, at the corner of the world."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "COG", "count": 1, "height": len(pixels), "width": len(pixels), "dtype": pixels.dtype}
    profile |= {"crs": f"EPSG:{EPSG}", "transform": Affine(res, 0, X, 0, -res, Y), "blocksize": 256}
    profile |= {"compress": "deflate", "level": 1}
    with rasterio.open(path, "w", **profile | more) as file:
        file.write(pixels, 1)


def write_item(
    folder: Path, name: str, collection: str, date: datetime, images: dict, side: int, **told
) -> pystac.Item:
    """An item with its images beside it.

    Args:
        folder: Of the item.
        name: Its id.
        collection: Of the item.
        date: Of acquisition.
        images: Pixels (h, w) by asset, or the path of a file.
        side: Pixels of 10 m across.
        told: Properties; ``__`` stands for a colon.
    """
    to_degrees = Transformer.from_crs(EPSG, 4326, always_xy=True)
    bounds = to_degrees.transform_bounds(X, Y - 10 * side, X + 10 * side, Y)
    told = {key.replace("__", ":"): value for key, value in told.items()}
    item = pystac.Item(name, mapping(box(*bounds)), [*bounds], date, {"proj:code": f"EPSG:{EPSG}"} | told)
    item.collection_id = collection
    for key, pixels in images.items():
        path = pixels if isinstance(pixels, Path) else folder / f"{key}.tif"
        if path is not pixels:
            write_cog(path, pixels, 10 * side / len(pixels), nodata=-32768 if pixels.dtype.kind == "f" else 0)
        item.add_asset(key, pystac.Asset(str(path), media_type=pystac.MediaType.COG, roles=["data"]))
    item.set_self_href(str(folder / f"{name}.json"))
    return item


def write_world(folder: Path, side: int = 768) -> pystac.Catalog:
    """Writes two optical items of the same pixels (clouds of 5 % and 60 %) and one of radar, below a catalog."""
    catalog = pystac.Catalog("world", "Scenes of Munich")
    extent = pystac.Extent(
        pystac.SpatialExtent([[11.6, 47.9, 12.0, 48.2]]), pystac.TemporalExtent([[datetime(2023, 5, 1), None]])
    )
    for name in ("sentinel-2-l2a", "sentinel-1-rtc"):
        catalog.add_child(pystac.Collection(name, name, extent))
    images: dict = {b: optics(b, side) for b in (*MODALITIES["s2l2a"].bands, "SCL")}
    for day, cloud in ((1, 5.0), (20, 60.0)):
        name = f"S2B_MSIL2A_202305{day:02}T101559_R065_T32UPU_202305{day:02}T140000"
        optical = write_item(
            folder / "s2" / name, name, "sentinel-2-l2a", datetime(2023, 5, day, 10, 15, 59), images, side,
            s2__processing_baseline="05.09", eo__cloud_cover=cloud, platform="Sentinel-2B",
            s2__mgrs_tile="32UPU", s2__product_uri=name.replace("_R065", "_N0509_R065") + ".SAFE",
        )  # fmt: skip
        catalog.get_child("sentinel-2-l2a").add_item(optical)
        images = {key: Path(asset.href) for key, asset in optical.assets.items()}
    name = "S1A_IW_GRDH_1SDV_20230502T052640_20230502T052705_048352_05D0D4_rtc"
    images = {band.lower(): radar(band, side) for band in ("VV", "VH")}
    item = write_item(
        folder / "s1" / name, name, "sentinel-1-rtc", datetime(2023, 5, 2, 5, 26, 40), images, side,
        sat__orbit_state="descending", platform="SENTINEL-1A",
    )  # fmt: skip
    catalog.get_child("sentinel-1-rtc").add_item(item)
    catalog.normalize_hrefs(str(folder), skip_unresolved=True)
    for item in catalog.get_items(recursive=True):
        item.make_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    return catalog


class SearchServer(RangeServer):
    """Serves a world, and at ``/api`` a search of its items with pages of one item.

    Args:
        folder: Of the world.
        methods: Of the search.
        **settings: Of a :class:`RangeServer`.
    """

    def __init__(self, folder: Path, methods: tuple[str, ...] = ("POST",), **settings) -> None:
        super().__init__(folder, **settings)
        self.RequestHandlerClass, self.methods = _Search, methods
        self.asked: list[dict] = []
        self.items = [json.loads(p.read_text()) | {"place": p.parent} for p in sorted(folder.rglob("S*.json"))]

    def found(self, asked: dict) -> dict:
        """One page of what is asked for."""
        self.asked.append(asked)
        west, south, east, north = map(float, asked["bbox"])
        start, end = asked.get("datetime", "../..").split("/")

        def fits(item: dict) -> bool:
            w, s, e, n = item["bbox"]
            time = item["properties"]["datetime"]
            near = w <= east and west <= e and s <= north and south <= n
            dated = (start == ".." or time >= start) and (end == ".." or time <= end)
            return near and dated and item["collection"] in asked["collections"]

        held, token = [*filter(fits, self.items)], int(asked.get("token", 0))
        features = []
        for item in held[token : token + 1]:
            base = f"{self.url}/{item['place'].relative_to(self.folder).as_posix()}"
            assets = {k: a | {"href": f"{base}/{a['href']}"} for k, a in item["assets"].items()}
            features.append({k: v for k, v in item.items() if k != "place"} | {"assets": assets})
        link = {"rel": "next", "href": f"{self.url}/api/search", "method": self.methods[0]}
        more = {"token": str(token + 1)}
        if self.methods[0] == "GET":
            words = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in (asked | more).items()}
            query = urlencode(words)
            link["href"] += f"?{query}"
        link |= {"body": more, "merge": True} if self.methods[0] == "POST" else {}
        return {"type": "FeatureCollection", "features": features, "links": [link] if held[token + 1 :] else []}


class _Search(_Handler):
    server: SearchServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.rstrip("/") == "/api":
            links = [
                {"rel": "search", "href": f"{self.server.url}/api/search", "method": m} for m in self.server.methods
            ]
            conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
            more = {"id": "api", "description": "", "links": links, "conformsTo": conforms, "stac_version": "1.0.0"}
            return self._json({"type": "Catalog"} | more)
        if path != "/api/search":
            return super().do_GET()
        asked = {key: values[0] for key, values in parse_qs(query).items()}
        self._json(self.server.found(asked | {k: asked[k].split(",") for k in ("bbox", "collections")}))

    def do_POST(self) -> None:
        self._json(self.server.found(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

    def _json(self, content: dict) -> None:
        body, answer = json.dumps(content).encode(), Sent(self.path, 200)
        number = self.server.seen[self.path] = self.server.seen.get(self.path, -1) + 1
        self.server.log.append(answer)
        if (fault := self.server.fault(self.path, number)) and fault.status:
            return self._head(answer, fault.status, dict(fault.headers), 0)
        self._head(answer, 200, {"Content-Type": "application/geo+json"}, len(body))
        self.wfile.write(body)
        answer.sent = len(body)


def change_item(folder: Path, word: str, change: Callable[[dict], object]) -> Path:
    """Changes an item on disk; returns its path."""
    path = next(path for path in sorted(folder.rglob("S*.json")) if word in path.name)
    item = json.loads(path.read_text())
    change(item)
    path.write_text(json.dumps(item))
    return path
