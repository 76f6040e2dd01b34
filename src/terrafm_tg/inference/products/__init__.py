"""Writers of embeddings: maps as COG and Zarr, tables as GeoParquet, and what describes them."""

from terrafm_tg.inference.products.cog import write_cog
from terrafm_tg.inference.products.reduce import DTYPES, Reduction

__all__ = ["DTYPES", "Reduction", "write_cog"]
