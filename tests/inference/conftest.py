"""Inference is compared with plain float32 forward passes, whatever units the processor has."""

import pytest


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("predictor", "map.predictor"):
        monkeypatch.setattr(f"terrafm_tg.inference.{module}.has_bf16_units", lambda device=None: False)
