"""Folding changes the numbers by rounding only, and neither the original nor its checkpoints."""

import pytest
import torch

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder, reparameterize


def test_folding() -> None:
    torch.manual_seed(0)
    model = build_encoder("terrafm_tiny", depth=1, bands=("B08", "B04", "B11")).eval()
    with torch.no_grad():
        for parameter in model.patch_embed.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = reparameterize(model)
    x = {"s1rtc": torch.randn(2, 2, 32, 48), "s2l1c": torch.randn(2, 3, 32, 48), "s2l2a": torch.randn(2, 3, 32, 48)}
    for name, image in x.items():
        torch.testing.assert_close(folded(image, modality=name), model(image, modality=name), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded(x), model(x), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_folded_encoder_and_a_checkpoint_do_not_mix() -> None:
    model = build_encoder("terrafm_tiny", depth=1)
    folded = reparameterize(model)
    with pytest.raises(TerraFMError, match="folded already"):
        reparameterize(folded)
    with pytest.raises(TerraFMError, match="The model is folded and the checkpoint is not"):
        folded.load_state_dict(model.state_dict(), strict=False)
    with pytest.raises(TerraFMError, match="The checkpoint is folded and the model is not"):
        model.load_state_dict(folded.state_dict(), strict=False)
    folded.load_state_dict(reparameterize(model).state_dict())
