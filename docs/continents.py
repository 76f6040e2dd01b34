"""Derives ``src/terrafm_tg/datasets/index/world/continents.geojson`` from Natural Earth's countries.

Natural Earth (https://www.naturalearthdata.com) is in the public domain. The outlines come out of an npm package, at
1:50 million and, of islands that are not there, 1:10 million; the continents of countries out of the wheel of an old
geopandas, which bundled those at 1:110 million:

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    pip download --no-deps "geopandas==0.14.4"
    unzip geopandas-0.14.4-*.whl "geopandas/datasets/naturalearth_lowres/*"
    python docs/continents.py package geopandas/datasets/naturalearth_lowres
"""

import json
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import shapely.affinity
from geopandas import GeoDataFrame

OUT = Path(__file__).parents[1] / "src/terrafm_tg/datasets/index/world/continents.geojson"
URAL = 60.0  # degrees east: Natural Earth counts all of Russia to Europe
COARSE = 0.05  # degrees by which an outline may be off
SMALLEST = 0.002  # square degrees of an island that is more than a dot
#: Countries that the coarse map lacks, by the United Nations' regions.
SMALL = {
    "Africa": "Cabo Verde, Comoros, Fr. S. Antarctic Lands, Mauritius, Saint Helena, Seychelles, São Tomé and Principe",
    "Asia": "Bahrain, Br. Indian Ocean Ter., Hong Kong, Indian Ocean Ter., Macao, Maldives, Scarborough Reef, "
    "Siachen Glacier, Singapore, Spratly Is., Cyprus U.N. Buffer Zone, Akrotiri, Dhekelia, Baikonur",
    "Europe": "Andorra, Faeroe Is., Gibraltar, Guernsey, Isle of Man, Jersey, Liechtenstein, Malta, Monaco, "
    "San Marino, Vatican, Åland",
    "North America": "Anguilla, Antigua and Barb., Aruba, Bajo Nuevo Bank, Barbados, Bermuda, British Virgin Is., "
    "Cayman Is., Clipperton I., Curaçao, Dominica, Grenada, Montserrat, Saint Lucia, Serranilla Bank, Sint Maarten, "
    "St-Barthélemy, St-Martin, St. Kitts and Nevis, St. Pierre and Miquelon, St. Vin. and Gren., "
    "Turks and Caicos Is., U.S. Virgin Is., USNB Guantanamo Bay",
    "Oceania": "American Samoa, Ashmore and Cartier Is., Cook Is., Coral Sea Is., Fr. Polynesia, Guam, "
    "Heard I. and McDonald Is., Kiribati, Marshall Is., Micronesia, N. Mariana Is., Nauru, Niue, Norfolk Island, "
    "Palau, Pitcairn Is., Samoa, Tonga, Tuvalu, U.S. Minor Outlying Is., Wallis and Futuna Is.",
    "South America": "S. Geo. and the Is.",
}
#: Parts of countries that lie elsewhere: the country, a box around them, their continent.
ELSEWHERE = (
    ("United States of America", (-180, 15, -150, 30), "Oceania"),  # Hawaii
    ("France", (40, -25, 60, -10), "Africa"),  # Réunion, Mayotte
    ("France", (-65, 10, -58, 20), "North America"),  # Guadeloupe, Martinique
    ("France", (-58, 0, -50, 10), "South America"),  # French Guiana
    ("Netherlands", (-75, 5, -60, 20), "North America"),
    ("Chile", (-120, -40, -100, -20), "Oceania"),  # Easter Island
    ("Norway", (-10, -60, 10, -50), "South America"),  # Bouvet
    ("South Africa", (30, -50, 45, -40), "Africa"),
    ("Australia", (150, -60, 170, -50), "Oceania"),
    ("Russia", (URAL, -90, 180, 90), "Asia"),
    ("Russia", (-180, -90, -160, 90), "Asia"),  # the end of Chukotka
)


def planar(polygon: shapely.Polygon) -> shapely.Geometry:
    """Cuts a polygon at 180 degrees, over which the atlas draws it as on a sphere."""
    rings = []
    for ring in (polygon.exterior, *polygon.interiors):
        x, y = np.asarray(ring.coords).T
        if y.max() < -89:  # a hole at the South Pole
            continue
        x = np.unwrap(x, period=360)
        if abs(x[-1] - x[0]) > 180:  # around the South Pole
            x, y = np.append(x, [x[-1], x[0]]), np.append(y, [-90, -90])
        rings.append(shapely.Polygon(np.column_stack([x, y])).buffer(0))
    land, world = rings[0].difference(shapely.union_all(rings[1:])), shapely.box(-180, -90, 180, 90)
    return shapely.union_all([shapely.affinity.translate(land, turn) & world for turn in (-360, 0, 360)])


def with_continents(countries: GeoDataFrame, coarse: GeoDataFrame) -> GeoDataFrame:
    """The parts of countries, each with the continent that it lies on."""
    parts = countries[["name", "geometry"]].explode(ignore_index=True)
    parts = parts[~parts.is_empty]
    parts = parts.set_geometry(parts.geometry.map(planar)).explode(ignore_index=True)
    parts = parts[parts.geom_type == "Polygon"]
    known = {name: continent for continent, names in SMALL.items() for name in names.split(", ")}
    largest = parts.assign(area=parts.area).sort_values("area").drop_duplicates("name", keep="last")
    middle = largest.set_geometry(largest.representative_point())
    on = gpd.sjoin_nearest(middle, coarse.loc[~coarse.continent.str.startswith("Seven"), ["continent", "geometry"]])
    known = dict(zip(on.name, on.continent, strict=True)) | known
    pieces = []
    for name, group in parts.groupby("name"):
        rest = group.assign(continent=known[name])
        for country, box, continent in ELSEWHERE:
            if country == name:
                pieces.append(rest.clip(shapely.box(*box)).assign(continent=continent))
                rest = rest.overlay(GeoDataFrame(geometry=[shapely.box(*box)], crs=rest.crs), how="difference")
        pieces.append(rest)
    return pd.concat(pieces, ignore_index=True)


def continents(fine: GeoDataFrame, finest: GeoDataFrame, coarse: GeoDataFrame) -> GeoDataFrame:
    """One row per continent, by name."""
    parts, more = with_continents(fine, coarse), with_continents(finest, coarse)
    near = shapely.STRtree(more.geometry).query(shapely.buffer(parts.union_all(), 0.2), predicate="intersects")
    islands = more.drop(index=more.index[near])
    parts = pd.concat([parts, islands.set_geometry(islands.convex_hull)])
    dots = parts.centroid.buffer(0.03, quad_segs=1)  # islands that would vanish
    merged = parts.set_geometry(dots.where(parts.area < SMALLEST, parts.geometry)).dissolve("continent").sort_index()
    outlines = merged.geometry.simplify(COARSE).set_precision(0.01)
    return GeoDataFrame({"continent": merged.index}, geometry=outlines.to_numpy(), crs=4326)


def main(atlas: str, source: str) -> None:
    """Write the file."""
    fine, finest = (gpd.read_file(f"{atlas}/countries-{scale}.json", layer="countries") for scale in ("50m", "10m"))
    table = continents(*(part.set_crs(4326, allow_override=True) for part in (fine, finest)), gpd.read_file(source))
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
            "name": "Continents, from Natural Earth's countries (public domain, naturalearthdata.com)",
            "features": features,
        },
        separators=(",", ":"),
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text + "\n")
    print(f"{OUT}: {len(text) / 1000:.0f} kB, {', '.join(table.continent)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
