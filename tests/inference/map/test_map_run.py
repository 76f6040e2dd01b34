"""Scenes to maps: the same as the head says of the whole scene, in its place, without seams, and said in a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from saved_heads import NANO, forget_places, save, seeded
from torchgeo.datasets import RasterDataset
from torchgeo.tasks import Classification, Regression

from data.geotiff import write_geotiff
from refusals import refusal, refused
from terrafm_tg.cli.main import main
from terrafm_tg.inference.map import make_maps
from terrafm_tg.inference.map import run as running
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.modalities import S2L2A
from terrafm_tg.tasks import (
    FineTuneChangeDetection,
    FineTuneSegmentation,
    TerraFMPixelwiseRegression,
    TerraFMSegmentation,
)
from terrafm_tg.transforms import Normalize

NAME = "S2A_MSIL2A_2023{date}T100031_N0400_R122_T33UXP_2023{date}T120000"


def scene(folder: Path, image: NDArray, date: str = "0501", **grid: Any) -> Path:
    """Writes a scene of L2A, whose numbers hold no offset, by name."""
    path = write_geotiff(folder / f"{NAME.format(date=date)}.tif", image.astype(np.uint16), nodata=0, **grid)
    with rasterio.open(path, "r+") as file:
        file.descriptions = S2L2A.bands[: len(image)]
    return path


def ground(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Reflectance of a textured place."""
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.normal(size=(-(-height // 20), -(-width // 20))), np.ones((20, 20)))[:height, :width]
    mean = np.array(S2L2A.mean)[:, None, None]
    return (mean * (1 + 0.3 * texture) + rng.normal(size=(12, height, width)) * 30).clip(1, 9000).round()


def segmentation(path: Path, alone: bool = True, **settings: Any) -> Any:
    """A head that gives each token's pixels; ``alone`` of its own 16 px only, wherever it lies."""
    seeded()
    settings = {"num_classes": 3, "modality": "s2l2a"} | settings
    task = TerraFMSegmentation("linear", NANO, **settings).eval()
    with torch.no_grad():
        for parameter in task.model.decoder.parameters():
            parameter.mul_(8)  # sure of itself
    save(forget_places(task) if alone else task, path)
    return task


def read(path: Path) -> NDArray:
    with rasterio.open(path) as file:
        return file.read()


def whole(task: Any, image: NDArray) -> NDArray[np.float32]:
    """The probabilities of the task itself, of the whole scene at once."""
    batch = {"image": Normalize("s2l2a")(torch.from_numpy(image).float())[None]}
    with torch.no_grad():
        return task.predict_step(batch, 0)["probabilities"][0].numpy()


def mapped(folder: Path, image: NDArray, **settings: Any) -> NDArray[np.float32]:
    """The probabilities of the map of a scene by the head in `x.ckpt`."""
    settings = {"window": 96, "device": "cpu", "offset": 0, "probabilities": "float32", "picture": False} | settings
    (folder / "m.tif").unlink(missing_ok=True)
    make_maps(scene(folder, image), folder / "m.tif", folder / "x.ckpt", **settings)
    return read(folder / "m_probabilities.tif")


def test_the_map_equals_the_head_on_the_whole_scene(tmp_path: Path) -> None:
    """A scene of one window: the same context, and so the same numbers; with neighbors and places."""
    task, image = segmentation(tmp_path / "x.ckpt", alone=False), ground(96, 112)
    wanted = whole(task, image)
    assert np.abs(mapped(tmp_path, image, window=112) - wanted).max() < 1e-5
    assert (read(tmp_path / "m.tif")[0] == wanted.argmax(0)).all()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.0])
def test_windows_leave_no_trace_where_context_does_not_matter(tmp_path: Path, overlap: float) -> None:
    """Many windows give what one gives, at the scene's edges and along a cliff within a token, too."""
    task, image = segmentation(tmp_path / "x.ckpt"), ground(640, 208)
    image[:, 300:] = image[:, 300:] * 0.3 + 5
    image[:, :, 101:] = image[:, :, 101:] * 0.5 + 5
    image = image.round()
    wanted = whole(task, image)
    assert np.abs(mapped(tmp_path, image, overlap=overlap) - wanted).max() < 1e-5
    assert (read(tmp_path / "m.tif")[0] == wanted.argmax(0)).mean() > 0.9999
    assert len(np.unique(wanted.argmax(0))) == 3  # or else the test says nothing


def test_a_constant_scene_gives_a_constant_map(tmp_path: Path) -> None:
    segmentation(tmp_path / "x.ckpt")
    with torch.no_grad():
        content = torch.load(tmp_path / "x.ckpt", weights_only=True)
        state = content["state_dict"]
        for name in ("model.decoder.linear.weight", "model.decoder.linear.bias"):  # each pixel of a token alike
            state[name] = (
                state[name].unflatten(0, (3, 256))[:, :1].expand(-1, 256, *state[name].shape[1:]).flatten(0, 1)
            )
        torch.save(content, tmp_path / "x.ckpt")
    image = np.broadcast_to(np.array(S2L2A.mean)[:, None, None].round(), (12, 300, 263))
    p = mapped(tmp_path, image)
    assert np.ptp(p[:, :288, :256], axis=(1, 2)).max() < 1e-5  # beyond, tokens are filled up
    assert len(np.unique(read(tmp_path / "m.tif")[:, :288, :256])) == 1


def test_overlapping_windows_leave_no_seam(tmp_path: Path) -> None:
    """A head that knows places: between windows the map steps no further than within one, without overlap it does."""
    seeded()
    task = FineTuneSegmentation(NANO, modalities=["s2l2a"], num_classes=2, decoder="linear").eval()
    with torch.no_grad():
        task.model.encoder.pos_embed.mul_(20)
        task.model.decoder.linear.weight.mul_(4)
    save(task, tmp_path / "x.ckpt")
    image = np.tile(np.array(S2L2A.mean)[:, None, None].round(), (1, 288, 288))

    def steps(p: NDArray) -> float:
        return float(max(np.abs(np.diff(p, axis=axis)).max() for axis in (1, 2)))

    inside = steps(whole_window(task, image))
    assert steps(mapped(tmp_path, image, overlap=0.5)) < 1.2 * inside
    assert steps(mapped(tmp_path, image, overlap=0.0)) > 2 * inside


def whole_window(task: Any, image: NDArray) -> NDArray[np.float32]:
    return whole(_Named(task), image[:, :96, :96])


class _Named:
    """The task, which names its one sensor."""

    def __init__(self, task: Any) -> None:
        self.predict_step = lambda batch, i: task.predict_step({"image": batch["image"]}, i)


@pytest.mark.parametrize("grid", [{"epsg": 32633}, {"epsg": 32733, "corner": (312_340, 8_200_010)}, {"epsg": 32701}])
def test_a_pixel_of_the_map_lies_where_the_scenes_pixel_lies(tmp_path: Path, grid: dict[str, Any]) -> None:
    """A field is where GDAL and TorchGeo find it in the scene: in two zones, and south of the equator."""
    task, image = segmentation(tmp_path / "x.ckpt"), ground(80, 64) * 0.8
    image[:, 16:32, 32:48] = 2 * image[:, 16:32, 32:48] + 900
    path = scene(tmp_path, image.round(), **grid)
    make_maps(path, tmp_path / "m.tif", tmp_path / "x.ckpt", device="cpu", offset=0, polygons=tmp_path / "p.geojson")
    with rasterio.open(path) as file, rasterio.open(tmp_path / "m.tif") as made:
        assert (made.crs, made.transform, made.shape, made.bounds) == (
            file.crs,
            file.transform,
            file.shape,
            file.bounds,
        )
    wanted = whole(task, image.round()).argmax(0)
    assert (read(tmp_path / "m.tif")[0] == wanted).all()

    class Maps(RasterDataset):
        filename_glob, is_image = "m.tif", False

    maps = Maps(tmp_path)
    assert (maps[maps.bounds]["mask"].squeeze().numpy() == wanted).all()
    table = geopandas.read_file(tmp_path / "p.geojson").to_crs(rasterio.open(path).crs)
    for row, column in ((5, 5), (20, 40), (75, 60)):
        x, y = rasterio.open(path).xy(row, column)
        here = table[table.contains(geopandas.points_from_xy([x], [y])[0])]
        assert list(here["class"]) == [wanted[row, column]]


def test_missing_pixels_are_missing_in_the_map(tmp_path: Path) -> None:
    segmentation(tmp_path / "x.ckpt")
    image = ground(100, 120)
    image[:, :30, :50] = 0
    p = mapped(tmp_path, image)
    assert (np.isnan(p[0]) == (image[0] == 0)).all()
    assert ((read(tmp_path / "m.tif")[0] == 255) == (image[0] == 0)).all()
    assert (np.isnan(read(tmp_path / "m_entropy.tif")[0]) == (image[0] == 0)).all()


def test_change_between_two_scenes_on_different_grids(tmp_path: Path) -> None:
    """The earlier scene is put on the later one's grid; where it shows nothing, there is no answer."""
    seeded()
    task = FineTuneChangeDetection(model="fcsiamdiff", backbone=f"{NANO}_s2l2a", in_channels=12).eval()
    save(task, tmp_path / "x.ckpt")
    image = ground(160, 160)
    after = scene(tmp_path / "b", image[:, 32:128, 32:128].copy(), "0901", corner=(400_320, 5_299_680))
    before = scene(tmp_path / "a", image[:, :, :112].copy(), "0501")
    make_maps(after, tmp_path / "m.tif", tmp_path / "x.ckpt", before=before, window=96, device="cpu", offset=0,
              probabilities="float32")  # fmt: skip
    p = read(tmp_path / "m_probabilities.tif")[0]
    assert np.isnan(p[:, 80:]).all()
    both = [np.where(np.arange(96) < 80, image[:, 32:128, 32:128], np.nan), image[:, 32:128, 32:128]]
    batch = torch.stack([Normalize("s2l2a")(torch.from_numpy(x).float()) for x in both])[None]
    with torch.no_grad():
        wanted = task.predict_step({"image": batch}, 0)[0, 0].numpy()
    assert np.abs(p[:, :80] - wanted[:, :80]).max() < 1e-4
    with rasterio.open(tmp_path / "m_probabilities.tif") as file:
        assert file.descriptions == ("class 1",)
    with refused(match="compares two dates: give the earlier scene as `before`"):
        make_maps(after, tmp_path / "n.tif", tmp_path / "x.ckpt", offset=0)
    segmentation(tmp_path / "y.ckpt")
    with refused(match="reads one date: leave `before` out"):
        make_maps(after, tmp_path / "n.tif", tmp_path / "y.ckpt", before=before, offset=0)


def test_a_class_per_image_gives_a_cell_per_window_or_denser(tmp_path: Path) -> None:
    seeded()
    task = Classification(model=f"{NANO}_s2l2a", in_channels=12, num_classes=4, labels=["a", "b", "c", "d"]).eval()
    save(task, tmp_path / "x.ckpt")
    image = ground(150, 128)
    settings = {"window": 64, "probabilities": "float32"}
    p = mapped(tmp_path, image, **settings)
    assert p.shape == (4, 3, 2)
    with torch.no_grad():
        tile = Normalize("s2l2a")(torch.from_numpy(image[:, 64:128, :64]).float())[None]
        assert np.allclose(p[:, 1, 0], task(tile).softmax(1)[0].numpy(), atol=1e-5)
    with rasterio.open(tmp_path / "m.tif") as file:
        assert (file.res, file.transform.c, file.transform.f) == ((640, 640), 400_000, 5_300_000)
    dense = mapped(tmp_path, image, stride=16, **settings)
    assert dense.shape == (4, 10, 8)
    with rasterio.open(tmp_path / "m.tif") as file:
        assert file.res == (160, 160)
    # A window of 64 px whose middle is that of the cell of 16 px.
    with torch.no_grad():
        tile = Normalize("s2l2a")(torch.from_numpy(image[:, 24:88, 40:104]).float())[None]
        assert np.allclose(dense[:, 3, 4], task(tile).softmax(1)[0].numpy(), atol=1e-5)
    segmentation(tmp_path / "y.ckpt")
    with refused(match="predicts every pixel: leave `stride` out"):
        make_maps(tmp_path, tmp_path / "n.tif", tmp_path / "y.ckpt", stride=16)


def test_numbers_are_a_map_of_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeded()
    save(TerraFMPixelwiseRegression("linear", NANO, modality="s2l2a", labels=["biomass"]), tmp_path / "x.ckpt")
    path = scene(tmp_path, ground(64, 80))
    words = ["map", str(path), str(tmp_path / "m.tif"), f"--ckpt_path={tmp_path / 'x.ckpt'}", "--offset=0"]
    main([*words, "--value_unit=Mg/ha", "--device=cpu"])
    assert "most time went into" in capsys.readouterr().out
    with rasterio.open(tmp_path / "m.tif") as file:
        assert (file.dtypes, file.units, file.descriptions) == (("float32",), ("Mg/ha",), ("biomass",))
        assert np.isfinite(file.read()).all()
    assert (tmp_path / "m.png").is_file()
    assert not (tmp_path / "m_entropy.tif").exists()
    assert "predicts numbers, which have no polygons" in refusal(capsys, *words, "--polygons=p.gpkg")
    save(Regression(model=f"{NANO}_s2l2a", in_channels=12, num_outputs=2), tmp_path / "two.ckpt")
    make_maps(path, tmp_path / "n.tif", tmp_path / "two.ckpt", window=32, device="cpu", offset=0)
    assert read(tmp_path / "n.tif").shape == (2, 2, 3)


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, image = (
        segmentation(tmp_path / "x.ckpt", labels=["[red]forest[/red]", "a & <b>", "$x_1^2$ \x1b森"]),
        ground(64, 96),
    )
    path = scene(tmp_path, image)
    words = [f"--ckpt_path={tmp_path / 'x.ckpt'}", "--offset=0", "--device=cpu"]
    main(["map", str(path), str(tmp_path / "out" / "m.tif"), *words, f"--polygons={tmp_path / 'p.gpkg'}"])
    out = capsys.readouterr().out
    counts = np.bincount(whole(task, image).argmax(0).ravel(), minlength=3)
    for name, count in zip(task.hparams["labels"], counts, strict=True):
        if count:
            line = next(line for line in out.splitlines() if line.strip().startswith(name.replace("\x1b", " ")))
            assert f"{count / counts.sum():.1%}" in line
            assert f"{count * 1e-4:,.2f}" in line
    for name in ("out/m.tif", "out/m_probabilities.tif", "out/m_entropy.tif", "p.gpkg", "out/m.png"):
        assert str(tmp_path / name) in out
        assert (tmp_path / name).is_file()
    assert f"({len(geopandas.read_file(tmp_path / 'p.gpkg')):,} polygons)" in out
    again = refusal(capsys, "map", str(path), str(tmp_path / "out" / "m.tif"), *words)
    assert "m.tif is there already: remove it" in again


def test_a_folder_of_scenes_becomes_a_folder_of_maps(tmp_path: Path) -> None:
    segmentation(tmp_path / "x.ckpt")
    scene(tmp_path / "in", ground(64, 64), "0501")
    scene(tmp_path / "in", ground(64, 64, 1), "0901", corner=(500_000, 5_300_000))
    settings = {"ckpt_path": tmp_path / "x.ckpt", "device": "cpu", "offset": 0, "picture": False}
    with refused(match="holds 2 images, and `out` is one file"):
        make_maps(tmp_path / "in", tmp_path / "m.tif", **settings)
    with refused(match="holds 2 images, and `polygons` is one file"):
        make_maps(tmp_path / "in", tmp_path / "out", polygons=tmp_path / "p.gpkg", **settings)
    make_maps(tmp_path / "in", tmp_path / "out", polygons="parquet", **settings)
    names = [NAME.format(date=date) for date in ("0501", "0901")]
    assert {path.stem for path in (tmp_path / "out").glob("*.parquet")} == set(names)
    assert all((tmp_path / "out" / f"{name}.tif").is_file() for name in names)


def test_a_head_of_other_bands_is_refused_in_a_sentence(tmp_path: Path) -> None:
    segmentation(tmp_path / "x.ckpt", modality="s2l1c")
    path = scene(tmp_path, ground(64, 64))
    settings = {"device": "cpu", "offset": 0}
    with refused(match="holds s2l2a, and the head reads s2l1c"):
        make_maps(path, tmp_path / "m.tif", tmp_path / "x.ckpt", **settings)
    segmentation(tmp_path / "y.ckpt")
    ten = scene(tmp_path / "ten", ground(64, 64)[[1, 2, 3, 7]], "0601")
    with rasterio.open(ten, "r+") as file:
        file.descriptions = ["B02", "B03", "B04", "B08"]
    with refused(match="lacks B01, B05, .* of s2l2a, and the head reads B01, B02"):
        make_maps(ten, tmp_path / "m.tif", tmp_path / "y.ckpt", **settings)
    segmentation(tmp_path / "z.ckpt", bands=["B04", "B08"], in_channels=2)
    make_maps(ten, tmp_path / "m.tif", tmp_path / "z.ckpt", **settings)
    with refused(match="There is no `ckpt_path`"):
        make_maps(path, tmp_path / "n.tif")


def test_what_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two parts, and while files are written; what is done is not done again."""
    segmentation(tmp_path / "x.ckpt")
    path = scene(tmp_path, ground(1100, 130))
    settings = {"ckpt_path": tmp_path / "x.ckpt", "device": "cpu", "offset": 0, "window": 112}
    make_maps(path, tmp_path / "a" / "m.tif", **settings)
    calls = {"write": 0, "layer": 0}
    write, layer = MapParts.write, running.write_layer

    def stopping(count: str, after: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls[count] += 1
            if calls[count] == after:
                raise KeyboardInterrupt
            return function(*args)

        return call

    monkeypatch.setattr(MapParts, "write", stopping("write", 4, write))
    monkeypatch.setattr(running, "write_layer", stopping("layer", 2, layer))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_maps(path, tmp_path / "b" / "m.tif", **settings)
        assert not (tmp_path / "b" / "m.tif").exists()
    make_maps(path, tmp_path / "b" / "m.tif", **settings)
    assert calls["write"] == 6  # two parts with a picture each, the last one twice
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
