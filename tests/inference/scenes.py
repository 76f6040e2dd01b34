"""Scenes on disk for tests of inference: stacks of Sentinel-2 L2A and Sentinel-1 in dB, and small encoders."""

from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from terrafm_tg.inference.predictor import Encoder
from terrafm_tg.models import build_encoder

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
#: Settings that say what the stacks hold, so that any pixels may be tried.
KNOWN = {"offset": 0, "unit": {"s2l2a": "DN", "s1rtc": "dB"}}
CORNER = Affine(10, 0, 399960, 0, -10, 5400000)


def pattern(height: int, width: int, channels: int, low: float, high: float, seed: int = 0) -> np.ndarray:
    """Smooth fields of several scales, float32 (C, H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = []
    for _ in range(channels):
        waves = rng.uniform(8, 120, (4, 2)), rng.uniform(0, 6, 4)
        planes.append(sum(np.sin(y / a + x / b + p) for (a, b), p in zip(*waves, strict=True)))
    field = np.stack(planes)
    field -= field.mean((1, 2), keepdims=True)
    if channels == len(BANDS):  # as on land: B8A looks like B08
        field[8] = field[7]
    return low + (high - low) * (field - field.min()) / (field.max() - field.min())


def write_stack(path: Path, pixels: np.ndarray, names: tuple[str, ...], crs: str, transform: Affine, nodata=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(
        path, "w", driver="GTiff", crs=crs, transform=transform, nodata=nodata, tiled=True, blockxsize=256,
        blockysize=256, **profile,
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = names
    return path


def write_optical(
    folder: Path, pixels: np.ndarray, day: str = "20230302", crs: str = "EPSG:32633", transform: Affine = CORNER
) -> Path:
    """Writes (12, H, W) digital numbers, 0 where missing."""
    name = f"S2B_MSIL2A_{day}T095029_N0400_R079_T33UXP_{day}T104753.tif"
    return write_stack(folder / name, np.rint(pixels).astype(np.uint16), BANDS, crs, transform)


def write_radar(
    folder: Path, pixels: np.ndarray, day: str = "20230303", crs: str = "EPSG:32633", transform: Affine = CORNER
) -> Path:
    """Writes (2, H, W) in dB, NaN where missing."""
    name = f"S1A_IW_GRDH_1SDV_{day}T165043_rtc.tif"
    return write_stack(folder / name, pixels.astype(np.float32), ("VV", "VH"), crs, transform, np.nan)


def small_encoder(positions: bool = True, **more) -> Encoder:
    """A nano encoder of random weights, whose fusion is no plain mean; blind to places where they are left out."""
    encoder = Encoder("terrafm_nano", weights=False, device="cpu", **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build_encoder("terrafm_nano").eval()
        torch.nn.init.normal_(model.patch_embed.fusion.key, std=0.02)
        torch.nn.init.normal_(model.patch_embed.fusion.reduction)
    if not positions:
        torch.nn.init.zeros_(model.pos_embed)
    encoder.__dict__["encoder"] = model
    return encoder
