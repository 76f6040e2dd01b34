import copy
from contextlib import nullcontext

import torch
from tiny_terrafm import loader, make_batch, tiny_terrafm, trainer
from torch.optim import AdamW

from terrafm_tg.models import build_encoder
from terrafm_tg.models.patch_embed import PatchStem
from terrafm_tg.tasks.pretrain.optimization import CenteredStems, clip_each_, parameter_groups


def tiles(seed: int) -> dict[str, torch.Tensor]:
    """Normalised tiles of two sensors, mean 0.5."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"s1rtc": (3, 2, 32, 32), "s2l2a": (3, 12, 32, 32)}
    return {name: 0.5 + 0.25 * torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}


def test_steps_are_those_of_an_encoder_that_gets_centred_inputs() -> None:
    """The reference subtracts 0.5 from what its stems see, and knows nothing of coordinates."""
    torch.manual_seed(0)
    ours = build_encoder("terrafm_tiny", depth=1).double()
    theirs = copy.deepcopy(ours)
    for stem in theirs.modules():
        if isinstance(stem, PatchStem):
            stem.bias.data += 0.5 * stem.weight.data.sum((1, 2, 3))
            stem.register_forward_pre_hook(lambda _, args: (args[0] - 0.5, *args[1:]))
    stems = CenteredStems(ours)
    assert len(stems.stems) == 3
    encoders = ours, theirs
    optimizers = [AdamW(parameter_groups([encoder]), lr=1e-3, weight_decay=0.3) for encoder in encoders]
    target = torch.randn(3, 192, dtype=torch.float64)
    for step in range(5):
        for encoder, optimizer in zip(encoders, optimizers, strict=True):
            optimizer.zero_grad()
            (encoder(tiles(step)) - target).square().sum().backward()
            if encoder is ours:
                stems.center_gradients_()
            clip_each_(encoder.parameters(), 3.0)
            with stems.stepping() if encoder is ours else nullcontext():
                optimizer.step()
    with torch.no_grad():
        outputs = [encoder(tiles(9)) for encoder in encoders]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-8, atol=1e-8)
    for name, p in theirs.named_parameters():
        if not name.endswith("bias") or "conv2d" not in name:
            torch.testing.assert_close(ours.get_parameter(name), p, rtol=1e-8, atol=1e-8, msg=name)


def test_the_constant_stays_where_it_is_in_training(tmp_path) -> None:
    """What a stem makes of a tile of the training mean moves by no more than its bias may."""
    lr = 3e-3
    task = tiny_terrafm(lr=lr, weight_decay=(0.0, 0.0))
    flat = torch.full((1, 2, 32, 32), 0.5)
    stem = task.student.patch_embed.conv2d_s1
    with torch.no_grad():
        before, kernel = stem(flat).flatten(), stem.weight.clone()
    steps = 6
    trainer(tmp_path, max_steps=steps).fit(task, loader([make_batch(4, 4 * i) for i in range(steps)]))
    with torch.no_grad():
        moved = (stem(flat).flatten() - before).abs().max()
    assert (stem.weight - kernel).abs().max() > lr  # it did learn
    assert moved <= 1.05 * steps * lr


def test_an_encoder_without_gradients_is_left_alone() -> None:
    encoder = build_encoder("terrafm_tiny", depth=1)
    before = copy.deepcopy(encoder.state_dict())
    stems = CenteredStems(encoder)
    stems.center_gradients_()
    with stems.stepping():
        pass
    after = encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
