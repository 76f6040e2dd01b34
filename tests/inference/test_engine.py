"""The engine beside plain inference: the same numbers, no seams, and the same bytes after a kill."""

import hashlib
import shutil
import warnings

import numpy as np
import pytest
import torch
from affine import Affine

from inference.scenes import CORNER, KNOWN, pattern, small_encoder, write_optical, write_radar
from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference import engine
from terrafm_tg.inference.engine import WindowSettings, layout_of, predict_rows
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.sources import find_images
from terrafm_tg.inference.windows import Axis, WindowLayout
from terrafm_tg.transforms import Normalize


def run(folder, image, encoder, settings, **more):
    layout = layout_of(image, encoder, settings)
    height, width = layout.size
    transform = tuple(image.transform * Affine.scale(layout.stride))[:6]
    parts = MapParts(folder, image.name, image.crs, transform, height, width, encoder.depth, layout.part)
    parts.begin()
    spent = predict_rows(image, encoder, layout, parts, settings, **more)
    return parts, spent


def whole(parts):
    return np.concatenate([values for _, values in parts.rows()])


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(engine, "_PART", 240)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """500 x 460 px, S1 over the left two thirds, a hole in S2."""
    folder = tmp_path_factory.mktemp("scene")
    optical = pattern(500, 460, 12, 200, 4000)
    optical[:, 100:180, 50:140] = 0
    radar = pattern(500, 460, 2, -18, -5, 1)
    radar[1] -= 7
    radar[:, :, 300:] = np.nan
    write_optical(folder, optical)
    write_radar(folder, radar)
    (image,) = find_images(folder, **KNOWN)
    return image, optical, radar


def test_equals_plain_inference_of_the_whole_image(tmp_path, scene):
    """One window over everything, fed by hand: normalized by the public transform, fused per token by hand."""
    image, optical, radar = scene
    encoder = small_encoder()
    parts, spent = run(tmp_path / "map", image, encoder, WindowSettings(window=512))
    assert spent.windows == 1
    padded = [np.full((len(x), 512, 464), np.nan, np.float32) for x in (radar, optical)]
    padded[0][:, :500, :460], padded[1][:, :500, :460] = radar, np.where(optical > 0, np.rint(optical), np.nan)
    model = encoder.encoder
    inputs = [Normalize(name)(torch.from_numpy(x))[None] for name, x in zip(("s1rtc", "s2l2a"), padded, strict=True)]
    share = np.where(np.arange(32) == 31, 0.25, 1)[:, None] * np.where(np.arange(29) == 28, 0.75, 1)  # in the image
    shown = [np.isfinite(x[0]).reshape(32, 16, 29, 16).mean((1, 3)) >= 0.5 * share for x in padded]
    for part in shown:
        part[31, 28] = False  # less than a quarter of it
    with torch.no_grad():
        alone = [
            model.patch_embed({"s1rtc": inputs[0]} and _batch(n, x))
            for n, x in zip(("s1rtc", "s2l2a"), inputs, strict=True)
        ]
        both = model.patch_embed(_batch("s1rtc", inputs[0], "s2l2a", inputs[1]))
        tokens = torch.where(torch.from_numpy(shown[0] & ~shown[1])[None, ..., None], alone[0], both)
        tokens = torch.where(torch.from_numpy(shown[1] & ~shown[0])[None, ..., None], alone[1], tokens)
        x = model.norm(model.blocks(model._pos_embed(tokens)))[0, 1:].unflatten(0, (32, 29)).numpy()
    some = shown[0] | shown[1]
    result = whole(parts)
    assert (np.isfinite(result).all(-1) == some).all()
    assert 0.3 < (shown[0] & shown[1]).mean() < 0.9
    assert (shown[0] & ~shown[1]).any()
    assert (shown[1] & ~shown[0]).any()
    np.testing.assert_allclose(result[some], x[some], atol=1e-5)


def test_bfloat16_gives_nearly_the_same_vectors(tmp_path, scene, monkeypatch):
    """Where the processor has units for it; here they are emulated where it has none."""
    image, *_ = scene
    exact = whole(run(tmp_path / "exact", image, small_encoder(), WindowSettings(window=96))[0])
    monkeypatch.setattr("terrafm_tg.inference.predictor.has_bf16_units", lambda device=None: True)
    low = whole(run(tmp_path / "low", image, small_encoder(), WindowSettings(window=96))[0])
    shown = np.isfinite(exact).all(-1)
    assert (np.isfinite(low).all(-1) == shown).all()
    a, b = (x[shown] / np.linalg.norm(x[shown], axis=1, keepdims=True) for x in (exact, low))
    assert (a * b).sum(1).min() > 0.999
    assert (a * b).sum(1).min() < 0.999999  # in bfloat16 indeed


def _batch(*pairs):
    from terrafm_tg.transforms import SensorBatch

    return SensorBatch(dict(zip(pairs[::2], pairs[1::2], strict=True)), None, 1)


def test_parts_change_nothing(tmp_path, scene, monkeypatch):
    image, *_ = scene
    encoder = small_encoder()
    once = whole(run(tmp_path / "once", image, encoder, WindowSettings(window=96))[0])
    monkeypatch.setattr(engine, "_PART", 112)
    parts, spent = run(tmp_path / "many", image, encoder, WindowSettings(window=96))
    assert parts.grid == (5, 5)
    np.testing.assert_allclose(whole(parts), once, atol=2e-6)
    starts = Axis(32, 6, 3).starts
    assert spent.windows <= len(starts) * len(Axis(29, 6, 3).starts)  # each once


def test_windows_are_blended_by_their_weights(tmp_path):
    """Sums of weighted windows, computed one by one."""
    write_optical(tmp_path, pattern(192, 240, 12, 200, 4000))
    (image,) = find_images(tmp_path, **KNOWN)
    encoder, settings = small_encoder(), WindowSettings(window=96, overlap=0.5)
    result = whole(run(tmp_path / "map", image, encoder, settings)[0])
    sums, weights = np.zeros((12, 15, encoder.depth)), np.zeros((12, 15, 1))
    ramp = np.sin(np.pi / 2 * np.minimum((np.minimum(range(6), range(5, -1, -1)) + 0.5) / 3, 1)) ** 2
    there = {"s2l2a": torch.ones(1, 6, 6, dtype=torch.bool)}
    for top in (0, 3, 6):
        for left in (0, 3, 6, 9):
            rows, columns = slice(top * 16, top * 16 + 96), slice(left * 16, left * 16 + 96)
            pixels = encoder.prepare(image.read(rows, columns)[0])["s2l2a"]
            value = encoder.predict({"s2l2a": pixels[None]}, there)[0].numpy()
            sums[top : top + 6, left : left + 6] += value * (ramp[:, None] * ramp)[..., None]
            weights[top : top + 6, left : left + 6] += (ramp[:, None] * ramp)[..., None]
    np.testing.assert_allclose(result, sums / weights, atol=1e-5)


def test_work_that_was_stopped_ends_in_the_same_bytes(tmp_path, scene, small_parts):
    image, *_ = scene
    encoder, settings = small_encoder(), WindowSettings(window=96)
    parts, _ = run(tmp_path / "map", image, encoder, settings)
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in parts.folder.glob("*.npy")}
    assert len(before) == 6
    for lost in (["r0001_c0000"], ["r0002_c0001", "r0000_c0001"], [name[:11] for name in before]):
        for name in lost:
            (parts.folder / f"{name}.npy").unlink()
        run(tmp_path / "map", image, encoder, settings)
        after = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in parts.folder.glob("*.npy")}
        assert after == before
    shutil.rmtree(parts.folder)


def test_rows_by_different_hands_are_the_same(tmp_path, scene, small_parts):
    image, *_ = scene
    encoder, settings = small_encoder(), WindowSettings(window=96)
    one, _ = run(tmp_path / "one", image, encoder, settings)
    for rows in ([2], [0, 1]):
        other, _ = run(tmp_path / "other", image, encoder, settings, rows=rows)
    assert (whole(one).tobytes()) == whole(other).tobytes()


def test_a_constant_scene_is_a_constant_map_to_a_model_blind_to_places(tmp_path, small_parts):
    write_optical(tmp_path, np.full((12, 496, 400), 1500.0))
    (image,) = find_images(tmp_path, **KNOWN)
    result = whole(run(tmp_path / "map", image, small_encoder(positions=False), WindowSettings(window=96))[0])
    assert np.ptp(result.reshape(-1, result.shape[-1]), axis=0).max() < 1e-4


def test_a_scene_cut_by_tokens_gives_the_map_cut_by_them(tmp_path):
    """Large scenes see the windows of one lattice, wherever they begin."""
    optical = pattern(720, 900, 12, 200, 4000)
    write_optical(tmp_path / "a", optical)
    write_optical(tmp_path / "b", optical[:, 32:, 80:], transform=CORNER * Affine.translation(80, 32))
    settings, encoder = WindowSettings(window=96), small_encoder()
    maps = [
        whole(run(tmp_path / f"map_{name}", find_images(tmp_path / name, **KNOWN)[0], encoder, settings)[0])
        for name in "ab"
    ]
    cut = maps[0][2:, 5:]
    same = np.abs(cut - maps[1]).max(-1) < 1e-5
    assert cut.shape == maps[1].shape
    assert same[6:-6, 6:-6].all()  # what no window at the border touches
    assert not same.all()


@pytest.mark.parametrize("stride", [8, 4])
def test_a_denser_map_holds_the_tokens_of_shifted_images(tmp_path, stride):
    """Every cell is the token around it, of the run that begins so many pixels later."""
    optical = pattern(192, 160, 12, 200, 4000)
    write_optical(tmp_path, optical)
    (image,) = find_images(tmp_path, **KNOWN)
    encoder = small_encoder()
    result = whole(run(tmp_path / "map", image, encoder, WindowSettings(window=96, stride=stride))[0])
    assert result.shape[:2] == (192 // stride, 160 // stride)
    layout = layout_of(image, encoder, WindowSettings(window=96, stride=stride))
    for window in layout.windows(0, 0):
        rows, columns = layout.pixels(window)
        middle = (rows.start + 8) / stride, (columns.start + 8) / stride
        assert middle == (window.row + 0.5, window.column + 0.5)
    (alone,) = [w for w in layout.windows(0, 0) if w.row == 0 and w.column == 0]
    rows, columns = layout.pixels(alone)
    images, _ = image.read(rows, columns)
    there = {n: torch.ones(1, 6, 6, dtype=torch.bool) for n in images}
    value = encoder.predict({n: x[None] for n, x in encoder.prepare(images).items()}, there)[0].numpy()
    np.testing.assert_allclose(result[0, 0], value[0, 0], atol=1e-5)


def test_no_seam_at_a_planted_edge(tmp_path):
    """An edge between two constant halves: no step elsewhere than at it, where windows meet or not."""
    optical = np.full((12, 320, 480), 800.0)
    optical[:, :, 240:] = 2400
    write_optical(tmp_path, optical)
    (image,) = find_images(tmp_path, **KNOWN)
    encoder = small_encoder(positions=False)
    energy = {}
    for overlap in (0.0, 0.5):
        result = whole(run(tmp_path / f"map{overlap}", image, encoder, WindowSettings(window=96, overlap=overlap))[0])
        steps = np.linalg.norm(np.diff(result[:, :30], axis=1), axis=-1).mean(0)
        far = [i for i in range(29) if abs(i - 14) > 7]
        energy[overlap] = max(steps[far]) / steps[14]
    assert energy[0.5] < 0.05
    assert energy[0.5] < energy[0.0] or energy[0.0] < 1e-6


def test_damage_is_missing_counted_and_bounded(tmp_path, scene, small_parts, monkeypatch):
    image, *_ = scene
    read = type(image)._cut

    def broken(self, name, number, rows, columns):
        if name == "s2l2a" and rows.start <= 300 < rows.stop and columns.start < 100:
            raise ValueError("block 3 does not decode")
        return read(self, name, number, rows, columns)

    monkeypatch.setattr(type(image), "_cut", broken)
    encoder = small_encoder()
    with pytest.warns(UserWarning, match="block 3 does not decode"):
        parts, spent = run(tmp_path / "map", image, encoder, WindowSettings(window=96, max_damaged=0.5))
    assert spent.damaged
    assert np.isfinite(whole(parts)[20, 2]).all()  # S1 is there
    warnings.simplefilter("ignore")
    with pytest.raises(TerraFMError, match="cannot be read"):
        run(tmp_path / "other", image, encoder, WindowSettings(window=96, max_damaged=0.0))


def test_settings_that_do_not_fit_are_named():
    for wrong, words in (
        ({"stride": 5}, "`stride` is 5: give one of 2, 4, 8, 16"),
        ({"window": 100}, "`window` is 100: give a multiple of 16"),
        ({"overlap": 1.0}, "`overlap` is 1.0"),
    ):
        settings = {"shape": (100, 100), "cell": 16, "stride": 16, "window": 96, "overlap": 0.25, "origin": (0, 0)}
        with pytest.raises(TerraFMError, match=words):
            WindowLayout(**settings | wrong, part=64)


def test_every_cell_has_a_window():
    for length in range(1, 70):
        for size, step in ((14, 10), (6, 3), (14, 14)):
            for phase in (0, 7):
                axis = Axis(length, size, step, phase)
                cells = np.zeros(length)
                for start in axis.starts:
                    assert 0 <= start <= length - axis.span
                    cells[start : start + axis.span] += axis.weights
                assert (cells > 0).all()
                if length >= 6 * size and phase:
                    assert {s % step for s in axis.starts[1:-1]} == {-phase % step}
