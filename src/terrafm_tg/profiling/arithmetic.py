"""Operations of a pretraining step, counted from its shapes.

The convention: matrix products only, a multiplication and an addition are two; the teacher's forward pass included;
every block in full for every token, whatever drop path skips or gradient checkpointing repeats; a backward pass costs
twice its forward pass, and once where only weights have a gradient (the stems, whose input is pixels). So an
implementation is judged by what the method asks for, not by what it happens to compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from terrafm_tg.modalities import get_modality
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.models.sizes import SIZES
from terrafm_tg.tasks import TerraFM
from terrafm_tg.transforms.multicrop import GLOBAL_CROPS

#: The fusion's queries and its reduction, which each value is multiplied with.
_MAPS = 6


@dataclass(frozen=True)
class StepOperations:
    """Operations per sample and stage of a step.

    Args:
        teacher: Encoder and head on the global crops.
        student: Encoder and head on all crops.
        loss: The contraction of the teacher's and the student's logits.
        backward: Of the student and the loss.
        modalities: Mean number of modalities per view, E[M].
    """

    teacher: float
    student: float
    loss: float
    backward: float
    modalities: float

    @property
    def total(self) -> float:
        """All stages together."""
        return self.teacher + self.student + self.loss + self.backward

    def stages(self) -> dict[str, float]:
        """By the names of the profile's stages."""
        return {name: getattr(self, name) for name in ("teacher", "student", "loss", "backward")}


def modality_shares(task: TerraFM) -> dict[str, float]:
    """Share of the views that show each modality, for tiles that have all of them: each kept with p, at least one.

    With three modalities and p = 0.5 they add up to 12/7.
    """
    count, keep = len(task.sensors), task.hparams["modality_probability"]
    share = keep / (1 - (1 - keep) ** count) if task.hparams["fuse"] else 1 / count
    return dict.fromkeys(task.sensors, share)


def step_operations(
    task: TerraFM, shares: Mapping[str, float] | None = None, as_written: bool = False
) -> StepOperations:
    """Operations of a training step per sample.

    Args:
        task: Whose settings to count; nothing is computed.
        shares: Share of the views that show each modality; that of the settings (:func:`modality_shares`) where None.
        as_written: Whether to count the published formulas one by one: the stem's pairs of linear maps (convolution
            and ``proj1``, ``proj2`` and ``proj3``) as two products each, and the key map applied to every token. By
            default each pair is one product, and the key map is applied to the queries, which costs nothing per token.
    """
    settings = task.hparams
    shares = modality_shares(task) if shares is None else shares
    size = SIZES[settings["model"]]
    width, depth = size["embed_dim"], settings["depth"] or size["depth"]
    sizes, counts = task.multicrop.sizes, task.multicrop.counts
    crops = {sizes["global"]: GLOBAL_CROPS}
    crops[sizes["local"]] = crops.get(sizes["local"], 0) + counts["local"]
    hidden, bottleneck, prototypes = (settings["head"][name] for name in ("hidden_dim", "bottleneck_dim", "prototypes"))
    head = 2 * (width * hidden + hidden * hidden + hidden * bottleneck + bottleneck * prototypes)
    views = sum(counts.values())

    def forward(edge: int) -> tuple[float, float]:
        """Of one view: products with pixels, and all others."""
        pixels, others = _embedding(edge, width, shares, as_written)
        return pixels, others + _blocks(edge, width, depth) + head

    teacher = GLOBAL_CROPS * sum(forward(sizes["global"]))
    pixels, others = (
        sum(n * part for n, part in zip(crops.values(), parts, strict=True))
        for parts in zip(*map(forward, crops), strict=True)
    )
    loss = 2 * GLOBAL_CROPS * views * prototypes
    return StepOperations(teacher, pixels + others, loss, pixels + 2 * others + loss, sum(shares.values()))


def _blocks(edge: int, width: int, depth: int) -> float:
    """Transformer blocks on one view: 12 d^2 per token, and attention."""
    tokens = 1 + (edge // PATCH_SIZE) ** 2
    return 2 * depth * (12 * tokens * width**2 + 2 * tokens**2 * width)


def _embedding(edge: int, width: int, shares: Mapping[str, float], as_written: bool) -> tuple[float, float]:
    """Stems, fusion and projection on one view: products with pixels, and all others."""
    patches, wide, modalities = (edge // PATCH_SIZE) ** 2, 3 * width, sum(shares.values())
    channels = sum(share * len(get_modality(name).bands) for name, share in shares.items())
    pixels = 2 * patches * channels * PATCH_SIZE**2 * wide
    others = 2 * patches * (modalities * _MAPS * wide + wide * width)
    if as_written:  # proj1 and the key map on every value, proj2 on what they become
        others += 2 * patches * (2 * modalities + 1) * wide**2
    return pixels, others
