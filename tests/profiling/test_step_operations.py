"""The count of a step's operations is what torch counts on real steps."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tasks.plain_step import PlainTerraFM
from tasks.tiny_terrafm import loader, make_batch, trainer
from terrafm_tg.modalities import get_modality
from terrafm_tg.models import TerraFMViT, multi_crop
from terrafm_tg.profiling.arithmetic import modality_shares, step_operations
from terrafm_tg.profiling.stages import StageProfiler
from terrafm_tg.tasks import TerraFM
from terrafm_tg.transforms import SensorBatch

SETTINGS = {
    "model": "terrafm_tiny",
    "depth": 2,
    "head": {"hidden_dim": 64, "bottleneck_dim": 32, "prototypes": 4096},
    "center": {"frequent_classes": ["Tree cover"]},
    "optimizer": {"lr_batch": None},
}


def test_the_papers_base_step() -> None:
    task = TerraFM(**SETTINGS)
    head = {"prototypes": 65536, "hidden_dim": 2048, "bottleneck_dim": 256}
    task.hparams.update(model="terrafm_base", depth=None, head=head)
    folded, written = step_operations(task), step_operations(task, as_written=True)
    assert folded.modalities == pytest.approx(12 / 7)
    assert folded.total == pytest.approx(0.472e12, rel=1e-3)
    assert written.total == pytest.approx(0.586e12, rel=1e-3)
    # Three times the forward pass throughout, as often assumed, gives the well-known 0.60: gradients of pixels, too.
    assert written.teacher + 3 * (written.student + written.loss) == pytest.approx(0.60e12, rel=5e-3)


@pytest.mark.parametrize(("count", "fuse", "expected"), [(3, True, 12 / 7), (2, True, 4 / 3), (3, False, 1)])
def test_modalities_per_view(count: int, fuse: bool, expected: float) -> None:
    task = TerraFM(**SETTINGS, modalities=["s1rtc", "s2l1c", "s2l2a"][:count], fuse=fuse)
    assert sum(modality_shares(task).values()) == pytest.approx(expected)


def group(task: TerraFM, edge: int, views: int) -> SensorBatch:
    """Views of which each modality has its expected share."""
    counts = {name: round(share * views) for name, share in modality_shares(task).items()}
    x = {name: torch.empty(n, len(get_modality(name).bands), edge, edge) for name, n in counts.items()}
    return task.student.sensor_batch(x, None, {name: torch.arange(n) for name, n in counts.items()}, views)


def embed(encoder: TerraFMViT, groups: list[SensorBatch]) -> torch.Tensor:
    """Class tokens by whole blocks, the last one too."""
    tokens = [encoder._pos_embed(grid) for grid in multi_crop.embed_groups(encoder.patch_embed, groups)]
    shapes, x = [(t.shape[0], t.shape[1]) for t in tokens], torch.cat([t.flatten(0, 1) for t in tokens])
    for block in encoder.blocks:
        x = block.forward_crops(x, shapes)
    return encoder.norm(multi_crop._class_tokens(x, shapes))


def test_the_fast_step_at_the_papers_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All crops of 42 tiles, forward and backward, as torch counts them; nothing is computed.

    Written-out attention: the fused kernel repeats a product in its backward pass.
    """
    written_out = lambda q, k, v: (q @ k.mT).softmax(-1) @ v  # noqa: E731
    monkeypatch.setattr(multi_crop, "scaled_dot_product_attention", written_out)
    task, batch = TerraFM(**SETTINGS).train(), 42
    with FakeTensorMode(allow_non_fake_inputs=True):
        groups = [group(task, 224, 2 * batch), group(task, 96, 8 * batch)]
        with FlopCounterMode(display=False) as counter:
            with torch.no_grad():
                task.teacher_head(embed(task.teacher, groups[:1]))
            teacher = counter.get_total_flops()
            student = task.student_head(embed(task.student, groups))
            both = counter.get_total_flops()
            student.sum().backward()
        backward = counter.get_total_flops() - both
    counted, width = step_operations(task), 192
    # What a step does once, whatever its batch: folding, and the key map on the queries.
    columns = sum(256 * len(get_modality(name).bands) for name in task.sensors)
    once = 2 * (3 * width) ** 2 * (columns + width + 5)
    assert teacher - once == pytest.approx(batch * counted.teacher, rel=1e-3)
    assert both - teacher - once == pytest.approx(batch * counted.student, rel=1e-3)
    assert backward - 2 * once == pytest.approx(batch * (counted.backward - counted.loss), rel=1e-3)


def test_a_plain_step_on_the_processor(tmp_path) -> None:
    """The whole plain step, which the profiler lets torch count; its fusion has a few more small products."""
    task = PlainTerraFM(
        **SETTINGS, crops={"global_size": 64, "local_size": 32, "local_crops": 2}, modality_probability=1.0
    )
    profiler, batch = StageProfiler(warmup=1, count=True), make_batch(2)
    trainer(tmp_path, max_steps=2, profiler=profiler).fit(task, loader([batch] * 2))
    with FlopCounterMode(display=False) as views:  # are made by small products, too
        task.multicrop(batch, task.multicrop.plan(batch))
    counted = step_operations(task, as_written=True)
    patches, wide = 2 * 16 + 2 * 4, 3 * 192
    # Three products with five queries and one with the reduction, where the count has one with six vectors.
    more = 2 * patches * wide * (2 * 5 * 3 + 5 - 6 * 3)
    teacher = more * (2 * 16) / patches
    expected = counted.total - 2 * counted.loss + teacher + 3 * more  # its loss has no product
    assert profiler.operations - views.get_total_flops() == pytest.approx(2 * expected, rel=1e-3)
