"""Writers of embeddings: maps as COG and Zarr, tables as GeoParquet, and what describes them."""

from terrafm_tg.inference.products.card import write_card
from terrafm_tg.inference.products.cog import write_cog
from terrafm_tg.inference.products.footprints import footprint, tile_rows
from terrafm_tg.inference.products.parquet import read_reductions, write_table
from terrafm_tg.inference.products.reduce import DTYPES, Reduction
from terrafm_tg.inference.products.stac import write_collection, write_item, write_table_item
from terrafm_tg.inference.products.zarr import write_zarr

__all__ = [
    "DTYPES",
    "Reduction",
    "footprint",
    "read_reductions",
    "tile_rows",
    "write_card",
    "write_cog",
    "write_collection",
    "write_item",
    "write_table",
    "write_table_item",
    "write_zarr",
]
