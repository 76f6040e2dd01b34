"""Scenes from STAC: an item, an item collection, a static catalog, or a search of an API."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode, urljoin, urlsplit

from terrafm_tg.datasets.scenes.scene import Found, Scene
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import write_json
from terrafm_tg.utils.remote import RemoteReader, leads_inside
from terrafm_tg.utils.trust import check_address, check_names, is_safe

from .items import Place, item_scene
from .search import StacSearch, boxes_meet

if TYPE_CHECKING:
    from pystac_client import ItemSearch

#: A search's items, kept in the folder that is indexed.
ITEMS = "stac_items.json"
#: Catalogs by a short name, the collections that are read of each, and where their images lie.
CATALOGS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "planetary-computer": (
        "https://planetarycomputer.microsoft.com/api/stac/v1",
        ("sentinel-2-l2a", "sentinel-1-rtc"),
        ("https://sentinel2l2a01.blob.core.windows.net/", "https://sentinel1euwestrtc.blob.core.windows.net/"),
    ),
    "earth-search": (
        "https://earth-search.aws.element84.com/v1",
        ("sentinel-2-l2a",),
        (
            "https://sentinel-cogs.s3.us-west-2.amazonaws.com/",
            "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/",
        ),
    ),
}
_MOST_DOCUMENT = 1 << 26  # bytes of a page of items
_MOST_DOCUMENTS = 100_000
_MOST_ITEMS = 20_000
_PAGE = 100  # items of a page that is asked for


@dataclass(frozen=True)
class StacScenes(Found):
    """Scenes of a catalog: with ``scenes``, ``refused`` and ``said`` of a folder's.

    Args:
        root: Folder below which files lie that are no addresses; None where the catalog lies on a server.
        items: The items, with complete addresses.
        sources: Addresses below which the files lie.
        search: The conditions; outside of their box nothing is read.
    """

    root: Path | None = None
    items: tuple[dict[str, Any], ...] = ()
    sources: tuple[str, ...] = ()
    search: StacSearch = field(default_factory=StacSearch)

    @property
    def bbox(self) -> tuple[float, ...] | None:
        """Box of the search."""
        return None if self.search.bbox is None else tuple(self.search.bbox)

    def save_in(self, folder: Path) -> None:
        """Writes the items as a STAC item collection, :data:`ITEMS`, atomically.

        Raises:
            TerraFMError: If images lie on disk, and not below that folder.
        """
        on_disk = any("://" not in file for scene in self.scenes for file in scene.files)
        if on_disk and self.root is not None and self.root != Path(os.path.abspath(folder)):
            raise TerraFMError(f"The catalog's images lie below {self.root}: use that folder instead of {folder}.")
        told = {"terrafm:bbox": self.bbox, "terrafm:modality": self.search.modality}
        write_json(folder / ITEMS, {"type": "FeatureCollection", **told, "features": list(self.items)})


def is_catalog(source: str | os.PathLike[str]) -> bool:
    """Tells whether a name is of a STAC catalog: an address, a JSON file, or a name of :data:`CATALOGS`."""
    return str(source) in CATALOGS or "://" in str(source) or str(source).lower().endswith((".json", ".geojson"))


@checked()
def open_stac(source: str | os.PathLike[str], search: StacSearch | None = None) -> StacScenes:
    """Opens an item, an item collection, a static catalog, or the found of an API's search as scenes.

    What a catalog names is opened only over HTTP or in object stores, or below the catalog's own folder where it
    is a file; a public catalog leads to no private network.

    Args:
        source: Path or address of an item, item collection, collection or catalog, the address of an API, or one of
            the names of :data:`CATALOGS`.
        search: Conditions; an API needs collections, and a box or dates.

    Returns:
        The scenes, their files as addresses or as names below the root.

    Raises:
        TerraFMError: If it is no STAC, cannot be read, holds nothing that fits, or no usable scene.
    """
    search, name = search or StacSearch(), str(source)
    if name in CATALOGS:
        name, known, _ = CATALOGS[name]
        search = replace(search, collections=search.collections or [*known])
    documents = _Documents(name)
    found_at: dict[tuple[Any, ...], list[tuple[int, Scene, dict[str, Any]]]] = {}
    refused, found, seen = [], 0, set()
    for href, item in _items(documents, search):
        place = Place.of(item)
        if (place.collection, place.name) in seen or not search.fits(item, place):
            continue
        seen.add((place.collection, place.name))
        found += 1
        if found > search.max_scenes:
            raise TerraFMError(
                f"{name} has more than `max_scenes` {search.max_scenes:,} items that fit: narrow the box, the dates or "
                "the cloud cover, or raise it."
            )
        try:
            whole = _with_addresses(item, href, documents)
            scene = item_scene(whole, place, search.modality)
        except TerraFMError as error:
            refused.append((place.name, str(error)))
            continue
        found_at.setdefault((scene.modality, scene.platform, scene.time, place.tile or place.name), []).append(
            (place.baseline, scene, whole)
        )
    if not found_at:
        reason = f", first: {refused[0][0]}, {refused[0][1]}" if refused else " that meets the conditions"
        raise TerraFMError(
            f"{name} holds no usable Sentinel scene{reason}" if refused else
            f"{name} holds no item{reason}: widen the box, the dates or the cloud cover, or name other collections."
        )  # fmt: skip
    newest = (entry for same in found_at.values() for entry in same if entry[0] == max(other[0] for other in same))
    entries = sorted(newest, key=lambda entry: (entry[1].modality, str(entry[1].time), entry[1].product))
    said = []
    if older := found - len(refused) - len(entries):
        said.append(f"{older} of {found} items are older processings of others, and left out.")
    scenes = [entry[1] for entry in entries]
    files = [file for scene in scenes for file in scene.files]
    sources = tuple(sorted({f"{'/'.join(file.split('/', 3)[:3])}/" for file in files if "://" in file}))
    held = tuple(entry[2] for entry in entries)
    return StacScenes(scenes, refused, said, documents.root, held, sources, search)


def image_sources(remote: bool | str | Sequence[str]) -> tuple[str, ...]:
    """Returns the addresses below which images may lie, each with a final slash.

    Args:
        remote: One or several; the name of one of :data:`CATALOGS` stands for its own, True for those of all.

    Raises:
        TerraFMError: If one is none that can be read.
    """
    if isinstance(remote, bool):
        return tuple(source for *_, sources in CATALOGS.values() for source in sources) if remote else ()
    found: list[str] = []
    for name in [remote] if isinstance(remote, str) else remote:
        found += CATALOGS[name][2] if name in CATALOGS else [f"{check_address(name).rstrip('/')}/"]
    return tuple(found)


def read_items(path: Path, sources: tuple[str, ...]) -> StacScenes:
    """Reads the items that :meth:`StacScenes.save` wrote, which may be a stranger's.

    Args:
        path: The file.
        sources: Addresses that the user named, below which images may lie.

    Raises:
        TerraFMError: As :func:`open_stac`, and if an image lies elsewhere.
    """
    held = _Documents(str(path)).read(str(path))
    told = {key: value for key in ("bbox", "modality") if (value := held.get(f"terrafm:{key}")) is not None}
    found = open_stac(path, StacSearch(**told, max_scenes=_MOST_ITEMS))
    for file in (file for scene in found.scenes for file in scene.files if "://" in file):
        if not file.startswith(sources):
            raise TerraFMError(
                f"{path} names {file[:200]!r}, which does not lie below an address that you named: give its address as "
                f"`remote`, such as {found.sources[0]}, if you trust it."
            )
        check_names([file], str(path), sources)
    return found


def sign_blob(url: str) -> str:
    """Signs an address of the Planetary Computer's images, which reads for about an hour; others stay as they are.

    Raises:
        TerraFMError: If planetary-computer is not installed.
        OSError: If its server does not answer.
    """
    return str(_library("planetary_computer").sign(url)) if url.startswith(CATALOGS["planetary-computer"][2]) else url


def _library(name: str) -> Any:
    """Imports a library of an extra.

    Raises:
        TerraFMError: If it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise TerraFMError(f"This needs {package}: run pip install 'terrafm-tg[stac]'.") from error


class _Documents:
    """The JSON documents of a catalog: files below its folder, or answers of servers.

    Args:
        origin: What the user named.
    """

    def __init__(self, origin: str) -> None:
        self.remote = "://" in origin and not origin.startswith("file://")
        if self.remote:
            self.origin = check_address(origin)
            self.root = None
        else:
            path = Path(unquote(urlsplit(origin).path) if origin.startswith("file://") else origin)
            self.root = Path(os.path.abspath(path)).parent
            self.origin = str(self.root / path.name)
        self.reader, self.count = RemoteReader(), 0

    def resolve(self, base: str, href: object) -> str:
        """Completes what a document names; a local path stays below the catalog's folder.

        Raises:
            TerraFMError: If it may not be read.
        """
        if not isinstance(href, str) or not href or "\0" in href:
            raise TerraFMError(f"It names {str(href)[:200]!r} as a file.")
        if "://" in base or ("://" in href and not href.startswith("file://")):
            url = urljoin(base, href) if "://" in base and "://" not in href else href
            check_address(url)
            parts = urlsplit(url)  # without `..` in it
            url = urljoin(url, parts.path) + f"?{parts.query}" * bool(parts.query)
            if url.startswith("file:"):
                raise TerraFMError(f"It names {url[:200]!r}, which a catalog on a server cannot: get its files anew.")
            if self.remote and leads_inside(self.reader, url, self.origin):
                raise TerraFMError(f"It names {url[:200]!r} in a private network, which was not opened.")
            return url
        path = unquote(urlsplit(href).path) if href.startswith("file://") else href
        whole = Path(os.path.normpath(Path(base).parent / path))
        name = whole.relative_to(self.root).as_posix() if self.root and whole.is_relative_to(self.root) else ""
        if not is_safe(name):
            raise TerraFMError(
                f"It names {href[:200]!r}, which does not lie below {self.root} and was not opened: name the "
                "catalog's top folder."
            )
        return str(whole)

    def read(self, href: str, post: Any = None) -> dict[str, Any]:
        """Reads a document.

        Raises:
            TerraFMError: If it cannot be read or is no JSON object.
        """
        self.count += 1
        if self.count > _MOST_DOCUMENTS:
            raise TerraFMError(f"{self.origin} leads to more than {_MOST_DOCUMENTS:,} documents: name a part of it.")
        try:
            if "://" in href:
                body = self.reader.fetch(href, _MOST_DOCUMENT, post)
            else:
                with open(href, "rb") as file:
                    body = file.read(_MOST_DOCUMENT + 1)
            content = json.loads(body)
            if isinstance(content, dict) and len(body) <= _MOST_DOCUMENT:
                return content
            reason = "it is no object of JSON, or too long"
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, TerraFMError):
                raise
            reason = str(error)
        raise TerraFMError(f"{href} is no STAC ({reason}): give an item, a collection, a catalog or an API.")


def _items(documents: _Documents, search: StacSearch) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the items of a catalog with the place of the document that holds each; conditions are not final."""
    waiting, seen = [documents.origin], set[str]()
    while waiting:
        href = waiting.pop()
        if href in seen:
            continue
        seen.add(href)
        content = documents.read(href)
        kind, links = content.get("type"), content.get("links")
        links = [link for link in links if isinstance(link, dict)] if isinstance(links, list) else []
        if kind == "Feature":
            yield href, content
        elif kind == "FeatureCollection":
            features = content.get("features")
            yield from (
                (href, item) for item in (features if isinstance(features, list) else ()) if isinstance(item, dict)
            )
        elif kind not in ("Catalog", "Collection") and "stac_version" not in content:
            raise TerraFMError(f"{href} is no STAC: give an item, an item collection, a catalog or an API.")
        elif href == documents.origin and any(link.get("rel") == "search" for link in links):
            yield from ((href, item) for item in _search(documents, content, links, search))
            return
        elif kind == "Collection" and not _may_hold(content, search):
            continue
        else:
            named = [link.get("href") for link in links if link.get("rel") in ("item", "items", "child")]
            waiting += reversed([documents.resolve(href, name) for name in named])


def _may_hold(collection: Mapping[str, Any], search: StacSearch) -> bool:
    """Tells whether a collection can have an item that fits, by its name and the box of its extent."""
    if search.collections and collection.get("id") not in search.collections:
        return False
    try:
        first = [float(x) for x in collection["extent"]["spatial"]["bbox"][0]]
    except (KeyError, IndexError, TypeError, ValueError):
        return True
    box = (*first[:2], *first[len(first) // 2 :][:2])
    return len(first) not in (4, 6) or search.bbox is None or boxes_meet(box, search.bbox)


def _search(
    documents: _Documents, root: Mapping[str, Any], links: list[dict[str, Any]], search: StacSearch
) -> Iterator[dict[str, Any]]:
    """Yields what an API finds."""
    if not search.collections or (search.bbox is None and search.dates is None):
        raise TerraFMError(
            f"{documents.origin} is the API of a whole archive: give `collections`, such as [sentinel-2-l2a], and a "
            "`bbox` or `dates`."
        )
    link = next((x for x in links if x.get("rel") == "search" and x.get("method") == "POST"), None)
    method = "POST" if link else "GET"
    link = link or next(x for x in links if x.get("rel") == "search")
    url = documents.resolve(f"{documents.origin.rstrip('/')}/", link.get("href"))
    start, end = (".." if moment is None else f"{moment.isoformat()[:19]}Z" for moment in search.interval)
    west, south, east, north = search.bbox or (0.0,) * 4
    halves = [[west, south, 180.0, north], [-180.0, south, east, north]] if west > east else [search.bbox]
    for bbox in halves:
        found: ItemSearch = _library("pystac_client").ItemSearch(
            url, method=method, stac_io=_api_io(documents), collections=search.collections, bbox=bbox, limit=_PAGE,
            datetime=None if search.dates is None else f"{start}/{end}", max_items=_MOST_ITEMS,
        )  # fmt: skip
        yield from (item for item in found.items_as_dicts() if isinstance(item, dict))


def _api_io(documents: _Documents) -> Any:
    """Makes what pystac-client reads with: it follows pages, we read them."""

    class Reader(_library("pystac_client.stac_api_io").StacApiIO):  # type: ignore[misc]
        def request(
            self, href: str, method: str | None = None, headers: object = None, parameters: dict[str, Any] | None = None
        ) -> str:
            url = documents.resolve(documents.origin, href)
            if (method or "GET").upper() == "POST":
                return json.dumps(documents.read(url, parameters or {}))
            query = urlencode(parameters or {}, doseq=True)
            return json.dumps(documents.read(f"{url}{'&' if '?' in url else '?'}{query}" if query else url))

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            if isinstance(source, str):  # never a file
                return self.request(source, *args, **kwargs)
            return str(super().read_text(source, *args, **kwargs))

    return Reader()


def _with_addresses(item: Mapping[str, Any], href: str, documents: _Documents) -> dict[str, Any]:
    """Returns an item whose images are named by complete addresses, or names below the catalog's folder."""
    assets = item.get("assets")
    whole = {}
    for key, asset in assets.items() if isinstance(assets, dict) else ():
        if not isinstance(asset, dict) or not is_image(asset):
            continue
        place = documents.resolve(href, asset.get("href"))
        if "://" not in place and documents.root is not None:
            place = PurePosixPath(place).relative_to(documents.root).as_posix()
        whole[str(key)] = asset | {"href": place}
    return {**item, "assets": whole, "links": []}


def is_image(asset: Mapping[str, Any]) -> bool:
    """Tells whether an asset is a GeoTIFF or JPEG 2000, by its media type, else by its name."""
    kind, name = str(asset.get("type") or "").lower(), urlsplit(str(asset.get("href"))).path.lower()
    return "tiff" in kind or "jp2" in kind or (not kind and name.endswith((".tif", ".tiff", ".jp2")))
