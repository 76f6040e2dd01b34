"""Derives ``src/terrafm_tg/datasets/index/world/continents.geojson`` from Natural Earth's countries at 1:110 million.

Natural Earth (https://www.naturalearthdata.com) is in the public domain. The countries come out of the wheel of an old
geopandas, which bundled them:

    pip download --no-deps "geopandas==0.14.4"
    unzip geopandas-0.14.4-*.whl "geopandas/datasets/naturalearth_lowres/*"
    python docs/continents.py geopandas/datasets/naturalearth_lowres
"""

import json
import sys
from pathlib import Path

import geopandas as gpd
import pandas as pd
import shapely
from geopandas import GeoDataFrame

OUT = Path(__file__).parents[1] / "src/terrafm_tg/datasets/index/world/continents.geojson"
URAL = 60.0  # degrees east: Natural Earth counts all of Russia to Europe


def continents(countries: GeoDataFrame) -> GeoDataFrame:
    """One row per continent, by name; what a country of Europe holds elsewhere counts to where it lies."""
    countries = countries[~countries.continent.str.startswith("Seven seas")]
    parts = countries[["continent", "geometry"]].explode(ignore_index=True)
    europe = parts.continent == "Europe"
    pieces = [parts[~europe]]
    for continent, west, east in (
        ("Asia", URAL, 180),
        ("Europe", -30, URAL),
        ("South America", -60, -30),  # French Guiana
        ("Asia", -180, -160),  # the end of Chukotka
    ):
        piece = parts[europe].clip(shapely.box(west, -90, east, 90))
        pieces.append(piece.assign(continent=continent))
    merged = pd.concat(pieces).dissolve("continent").sort_index().reset_index()
    return merged.set_geometry(merged.geometry.set_precision(0.01))


def main(source: str) -> None:
    """Write the file."""
    table = continents(gpd.read_file(source))
    features = [
        {
            "type": "Feature",
            "properties": {"name": row.continent},
            "geometry": json.loads(shapely.to_geojson(row.geometry)),
        }
        for row in table.itertuples()
    ]
    text = json.dumps(
        {
            "type": "FeatureCollection",
            "name": "Continents, from Natural Earth 1:110m countries (public domain, naturalearthdata.com)",
            "features": features,
        },
        separators=(",", ":"),
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text + "\n")
    print(f"{OUT}: {len(text) / 1000:.0f} kB, {', '.join(table.continent)}")


if __name__ == "__main__":
    main(sys.argv[1])
