"""Major-TOM's tables at their source: which cell of which product lies in which row of which file."""

from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import TerraFMError

from .http import Http, NotThereError
from .whole import save_file

#: Where Major-TOM is published; the name of the product (``Core-S2L2A``) takes the place of ``{product}``.
SOURCE = "https://huggingface.co/datasets/Major-TOM/{product}/resolve/main"
#: Below a root: what is kept of the source (tables, footers of its files) and rows that wait for their file.
KEPT = ".download"
#: Below a product's folder there: the rows, in folders by file of the source.
ROWS = "rows"
_NEEDED = ["grid_cell", "product_id", "crs", "parquet_url", "parquet_row"]
_HELPFUL = {"nodata": "nodata", "cloud_cover": "cloud", "timestamp": "time"}


def product_url(source: str, modality: str) -> str:
    """Address of a product's folder.

    Raises:
        TerraFMError: If the source is no address.
    """
    if urlparse(source).scheme not in ("http", "https"):
        raise TerraFMError(
            f"`source` is {source!r}: give an address that begins with http:// or https://, such as {SOURCE}."
        )
    product = FOLDERS[modality]
    return source.format(product=product) if "{product}" in source else f"{source.rstrip('/')}/{product}"


def fetch_table(http: Http, root: Path, source: str, modality: str) -> Path:
    """The product's complete ``metadata.parquet``, as the source has it now; fetched where it is new.

    Raises:
        TerraFMError: If the source cannot be read.
    """
    url = f"{product_url(source, modality)}/metadata.parquet"
    path = root / KEPT / FOLDERS[modality] / "metadata.parquet"
    try:
        fresh = save_file(http, url, path)
    except NotThereError as error:
        raise TerraFMError(
            f"{url} does not exist (404): correct `source`, or leave {modality} out."
        ) from error
    if fresh:  # what was known of the files may no longer hold
        for footer in (path.parent / "footers").glob("*"):
            footer.unlink()
    return path


def read_table(path: Path, modality: str) -> pd.DataFrame:
    """The rows of a product's table.

    Returns:
        Columns ``modality``, ``cell``, ``product_id``, ``epsg``, ``nodata``, ``cloud``, ``time``, ``part`` (name of
        the file), ``group`` (its row group), ``position`` (row of the table). Rows outside of UTM are left out.

    Raises:
        TerraFMError: If it is not Major-TOM's metadata.
    """
    try:
        held = pq.read_schema(path).names
        if missing := [name for name in _NEEDED if name not in held]:
            raise TerraFMError(f"{path} lacks {', '.join(missing)}: it is not Major-TOM's metadata.")
        columns = _NEEDED + [name for name in _HELPFUL if name in held]
        frame = pd.read_parquet(path, columns=columns).reindex(columns=_NEEDED + list(_HELPFUL))
    except (pa.ArrowException, OSError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): remove it, and start again.") from error
    urls = pd.Categorical(frame.pop("parquet_url"))
    names = np.array([urlparse(url).path.rpartition("/")[2] for url in urls.categories], dtype=object)
    crs = pd.Categorical(frame.pop("crs").astype("str"))
    zones = pd.to_numeric(crs.categories.to_series().str.extract(r"(32[67]\d\d)$", expand=False))
    table = pd.DataFrame(
        {
            "modality": modality,
            "cell": frame["grid_cell"],
            "product_id": frame["product_id"],
            "epsg": zones.to_numpy()[crs.codes],
            **{new: frame[old] for old, new in _HELPFUL.items()},
            "part": pd.Categorical(names[urls.codes]),
            "group": frame["parquet_row"],
            "position": np.arange(len(frame)),
        }
    )
    table["time"] = pd.to_datetime(table["time"])
    table[["nodata", "cloud"]] = table[["nodata", "cloud"]].astype(float)
    return table[table["epsg"].notna() & (urls.codes >= 0)]
