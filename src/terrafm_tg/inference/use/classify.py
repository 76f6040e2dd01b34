"""A map of classes from a few labels, by k-NN or logistic regression on embeddings."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.products.layers import Layer, count_classes, write_layer
from terrafm_tg.inference.products.legend import Legend, make_legend
from terrafm_tg.inference.products.picture import write_picture
from terrafm_tg.inference.products.polygons import write_frame
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, POSITIVE, checked
from terrafm_tg.utils.files import work_folder, write_json

from .labels import read_labels
from .map_output import output_places, pieces, windows
from .opened import Embeddings, open_embeddings
from .table_picture import write_table_picture
from .tables import Pooling, TableLayer
from .validation import SpatialScore, validate
from .vectors import EmbeddingLayer, MapLayer, distances

#: Embeddings from which mean and standard deviation are taken.
_STANDARD = 200_000
#: Meters of a pixel in which a product counts its windows.
_PIXEL = 10.0


@dataclass(frozen=True)
class Classified:
    """Result of a classification: files, classes and the score.

    Args:
        files: That were written, by what they are: maps or tables first.
        classes: Names of the classes.
        labels: Number of labeled embeddings of each class.
        shares: Share of each class in what is mapped.
        missing: Share of what has no embedding.
        score: The cross-validation's.
        said: What a user should know, in sentences.
    """

    files: list[Path]
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    shares: tuple[float, ...]
    missing: float
    score: SpatialScore
    said: tuple[str, ...]


class LabelClassifier:
    """Standardized embeddings and a classifier of scikit-learn.

    Args:
        method: ``knn`` compares directions (cosine) and weighs neighbors by 1 / distance; ``logistic`` is a regression
            with an L2 penalty.
        scaler: Fitted standardization.
        k: Neighbors, at most as many as there are labels.
        balance: Give all classes the same weight, however many labels each has.
        c: Inverse strength of the penalty.
    """

    def __init__(self, method: str, scaler: Any, k: int = 5, balance: bool = True, c: float = 1.0) -> None:
        self.method, self.scaler, self.k, self.balance, self.c = method, scaler, k, balance, c
        self.model: Any = None
        self.classes, self.weights = np.empty(0, np.int64), np.empty(0)

    def fit(self, x: NDArray, y: NDArray) -> "LabelClassifier":
        """Learns from embeddings (n, D) and classes (n,); returns another one that predicts."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer

        found = LabelClassifier(self.method, self.scaler, self.k, self.balance, self.c)
        weight = "balanced" if self.balance else None
        if self.method == "knn":
            knn = KNeighborsClassifier(min(self.k, len(y)), weights="distance", algorithm="brute")
            found.model = make_pipeline(Normalizer(), knn)  # distances of unit vectors rank as cosines do
        else:
            found.model = LogisticRegression(C=self.c, class_weight=weight, max_iter=2000)
        found.model.fit(self.scaler.transform(x), y)
        classes, counts = np.unique(y, return_counts=True)
        found.classes = classes
        found.weights = 1 / counts if self.balance and self.method == "knn" else np.ones(len(classes))
        return found

    def probabilities(self, x: NDArray) -> NDArray[np.float64]:
        """Returns the probability of each class that was learned, (n, C), in the order of ``classes``."""
        votes = self.model.predict_proba(self.scaler.transform(x)) * self.weights
        return votes / votes.sum(axis=1, keepdims=True)

    def predict(self, x: NDArray) -> NDArray[np.int64]:
        """Returns the most probable class of each embedding, (n,)."""
        return self.classes[self.probabilities(x).argmax(axis=1)]


@checked(k=COUNT, c=POSITIVE, buffer=NOT_NEGATIVE)
def classify(
    embeddings: str | PathLike[str],
    labels: str | PathLike[str],
    out: str | PathLike[str],
    column: str | None = None,
    method: Literal["knn", "logistic"] = "logistic",
    k: int = 5,
    c: float = 1.0,
    balance: bool = True,
    buffer: float | None = None,
    labels_crs: str | None = None,
    pooling: Pooling | None = None,
    colors: list[str] | dict[str, str] | None = None,
    picture: bool = True,
) -> Classified:
    """Makes a map of classes from a few labeled points or polygons.

    Args:
        embeddings: What `terrafm embed` wrote: a COG, Zarr store or GeoParquet table, a folder of them, or a STAC item
            or collection.
        labels: Points or polygons with a class: GeoJSON, GeoParquet or CSV (columns lon, lat), in any CRS.
        out: The map (.tif) or table (.parquet) of one file of embeddings; or a folder.
        column: Column of the labels' classes; class, label and the like, or the only one, by default.
        method: Logistic regression, or the nearest neighbors in cosine; both on standardized embeddings.
        k: Neighbors that vote.
        c: Of logistic regression: large values trust the labels more, small ones smooth.
        balance: Weigh all classes alike, however many labels each has.
        buffer: Meters that must lie between labels to test and labels to learn from: by default the window of the
            embeddings, since nearer ones share pixels.
        labels_crs: CRS of the labels' coordinates where the file does not tell, such as EPSG:32633.
        pooling: Which of a table's vectors, where it has several.
        colors: #rrggbb of the classes, in order or by name.
        picture: Write a quick look with the legend, too.

    Returns:
        What was written, and how good it is.

    Raises:
        TerraFMError: If the embeddings, the labels or the output cannot be used.
    """
    opened = open_embeddings(embeddings, pooling)
    places = output_places(opened, Path(out))
    known = read_labels(opened, Path(labels), column, labels_crs)
    legend = make_legend(known.classes, len(known.classes), colors)
    window = _window(opened)
    said = list(known.said)
    if buffer is None:
        buffer = window
    elif buffer < window:
        said.append(
            f"`buffer` is {buffer:,.0f} m, and embeddings nearer than {window:,.0f} m share pixels: the score is too "
            "good."
        )
    start = LabelClassifier(method, standardization(opened), k, balance, c)
    score = validate(known, start.fit, buffer)
    fitted = start.fit(known.x, known.y)
    about = {"method": method, "labels": Path(labels).name, "score": score.words}
    files, counts = list[Path](), np.zeros(len(known.classes) + 1, np.int64)
    for layer, path in zip(opened.layers, places, strict=True):
        if isinstance(layer, MapLayer):
            made, own = _write_map(layer, path, fitted, legend, about, picture)
        else:
            assert isinstance(layer, TableLayer)
            made, own = _write_table(layer, path, fitted, legend, picture)
        files += made
        counts += own
    report = places[0].parent / f"{Path(out).stem}_score.json"
    write_json(report, {"method": method, "classes": list(known.classes)} | score.to_dict())
    return Classified(
        files=[*files, report],
        classes=known.classes,
        labels=tuple(np.bincount(known.y, minlength=len(known.classes)).tolist()),
        shares=tuple(shares_of(counts[:-1]).tolist()),
        missing=float(counts[-1] / max(counts.sum(), 1)),
        score=score,
        said=tuple(said),
    )


def standardization(opened: Embeddings) -> Any:
    """Fits mean and standard deviation to embeddings, of large products to parts that are spread over them."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for _, part in opened.parts(_STANDARD):
        if len(part.x):
            scaler.partial_fit(part.x.astype(np.float64))
    if not hasattr(scaler, "mean_"):
        raise TerraFMError(f"{opened.path} holds no embedding that is there: all are missing.")
    return scaler


def _window(opened: Embeddings) -> float:
    """Returns the edge in meters of what one embedding sees, as the product says it; else that of its pixel."""
    said = [str(layer.about.get("window", "")) for layer in opened.layers]
    numbers = [float(value) for value in said if value.isdigit()]
    return max([*(number * _PIXEL for number in numbers), *map(_pixel_meters, opened.layers)])


def _pixel_meters(layer: EmbeddingLayer) -> float:
    if not isinstance(layer, MapLayer):
        return 0.0
    middle = layer.height // 2 * layer.width + layer.width // 2
    beside = middle + 1 if layer.width > 1 else middle
    lon, lat = layer.lonlat(np.array([middle, beside]))
    return float(distances(lon[0], lat[0], lon[1], lat[1]))


def shares_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns counts as shares of all; 0 where there is none."""
    return counts / max(int(counts.sum()), 1)


def _write_map(
    layer: MapLayer, path: Path, model: LabelClassifier, legend: Legend, about: dict[str, Any], picture: bool
) -> tuple[list[Path], NDArray[np.int64]]:
    """Writes a map of classes, one of confidence, and a picture; counts the pixels of each class, the missing last."""
    sure, image = path.with_name(f"{path.stem}_confidence.tif"), path.with_suffix(".png")
    with work_folder(path) as folder:
        parts = pieces(layer, folder, 2, about)
        for row, column, rows, columns in windows(parts):
            values = layer.read(rows, columns)
            there = np.isfinite(values).all(axis=-1)
            found = np.full((*there.shape, 2), np.nan, np.float32)
            if there.any():
                probabilities = model.probabilities(values[there])
                best = probabilities.argmax(axis=1)
                found[there] = np.stack([model.classes[best], probabilities.max(axis=1)], axis=1)
            parts.write(row, column, found)
        kind = "uint8" if len(legend.names) < 256 else "uint16"
        write_layer(path, parts, Layer("", slice(0, 1), ["class"], kind, np.iinfo(kind).max, legend=legend))
        write_layer(sure, parts, Layer("", slice(1, 2), ["confidence"], "float32", np.nan))
        counts, missing = count_classes(parts, len(legend.names))
    if picture:
        write_picture(image, path, f"{layer.name}: {about['method']}", legend, shares_of(counts).tolist(), "")
    return [path, sure, *([image] if picture else [])], np.append(counts, missing)


def _write_table(
    layer: TableLayer, path: Path, model: LabelClassifier, legend: Legend, picture: bool
) -> tuple[list[Path], NDArray[np.int64]]:
    """Writes a table of classes, and a picture; counts as :func:`_write_map`."""
    import geopandas as gpd

    best, sure = np.full(layer.count, -1), np.full(layer.count, np.nan)
    for part in layer.parts():
        if len(part.x):
            probabilities = model.probabilities(part.x)
            best[part.place] = model.classes[probabilities.argmax(axis=1)]
            sure[part.place] = probabilities.max(axis=1)
    names = np.array([*legend.names, None], dtype=object)
    columns = layer.identity() | {"class": names[best], "probability": sure}
    write_frame(gpd.GeoDataFrame(columns, geometry=layer.geometries, crs=layer.crs), path, "classes")
    counts = np.bincount(best[best >= 0], minlength=len(legend.names))
    image = path.with_suffix(".png")
    if picture:
        write_table_picture(image, layer, best, legend)
    return [path, *([image] if picture else [])], np.append(counts, (best < 0).sum())
