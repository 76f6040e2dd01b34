"""A training step as the paper writes it: the oracle of the fast one, and the baseline of its speed.

One forward per crop size, the key map on every token, softmax attention written out, every residual branch computed and
then multiplied by its mask, one cross-entropy per pair of views, one parameter at a time in optimiser and average.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, linear, normalize
from torch.optim import AdamW

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models import TerraFMViT
from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.optimization import parameter_groups
from terrafm_tg.transforms import SensorBatch

#: For each residual branch the weight of every view (n,): 0, or 1 / (share that is kept).
type Masks = list[Tensor]


def fuse(embed: nn.Module, group: SensorBatch) -> Tensor:
    """Pixels to fused values (n, N, D): stem, value map and attention over the modalities of each position."""
    fusion, values, keys, present = embed.fusion, [], [], []
    for name, image in group.images.items():
        stem = MODALITIES[name].stem
        conv = embed.get_submodule(f"conv2d_{stem}")
        z = conv2d(image, conv.weight, conv.bias, stride=16).flatten(2).mT + embed.get_parameter(f"{stem}_embed")
        value = embed.projection.proj1(z)
        key = linear(value, fusion.key)
        idx = group.sample_idx[name]
        empty = value.new_zeros(group.size, *value.shape[1:])
        values.append(empty.index_copy(0, idx, value))
        keys.append(empty.index_copy(0, idx, key))
        present.append(torch.zeros_like(empty[:, 0, 0], dtype=torch.bool).index_fill(0, idx, True))
    v, k = torch.stack(values, 2).float(), torch.stack(keys, 2).float()  # (n, N, M, D)
    with torch.autocast(v.device.type, enabled=False):
        scores = torch.einsum("qd,bnmd->bnqm", fusion.queries, k) * v.shape[-1] ** -0.5
        scores = scores.masked_fill(~torch.stack(present, 1)[:, None, None], -torch.inf)
        seen = scores.softmax(-1) @ v  # (n, N, queries, D)
        return ((seen @ fusion.reduction).softmax(-1)[..., None] * seen).sum(2)


def encode(encoder: TerraFMViT, group: SensorBatch, masks: Masks | None = None) -> Tensor:
    """Class tokens (n, d) of the views of one size."""
    projection = encoder.patch_embed.projection
    fused = fuse(encoder.patch_embed, group)
    x = projection.proj3(projection.proj2(projection.norm_input(fused)))
    side = int(x.shape[1] ** 0.5)
    x = encoder._pos_embed(x.unflatten(1, (side, side)))
    for i, block in enumerate(encoder.blocks):
        first, second = (1.0, 1.0) if masks is None else (mask[:, None, None] for mask in masks[2 * i : 2 * i + 2])
        x = x + first * attend(block.attn, block.norm1(x))
        x = x + second * block.mlp.fc2(gelu(block.mlp.fc1(block.norm2(x))))
    return encoder.norm(x)[:, 0]


def attend(attn: nn.Module, x: Tensor) -> Tensor:
    """Softmax attention, written out."""
    n, tokens, dim = x.shape
    q, k, v = attn.qkv(x).reshape(n, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(n, tokens, dim))


def cross_entropy(student: list[Tensor], teacher: list[Tensor], student_temp: float, teacher_temp: float) -> Tensor:
    """Mean over pairs of different views of the views' mean cross-entropy."""
    pairs = []
    for t, target in enumerate(teacher):
        for s, logits in enumerate(student):
            if s != t:
                log_p = (logits.float() / student_temp).log_softmax(-1)
                pairs.append(-((target / teacher_temp).softmax(-1) * log_p).sum(-1).mean())
    return sum(pairs) / len(pairs)


class PlainTerraFM(TerraFM):
    """TerraFM that learns by the plain step; same draws, same settings, same checkpoints."""

    def configure_optimizers(self) -> AdamW:
        """One parameter at a time."""
        groups = parameter_groups((self.student, self.student_head))
        return AdamW(groups, lr=self.hparams["optimizer"]["lr"], foreach=False)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a micro-batch."""
        stage, size = self.trainer.profiler.profile, len(batch["position"])
        with stage("views"):
            views = self.multicrop(batch, batch["plan"])
        values, h = self.schedules.at(self.global_step), self.hparams
        alpha = h["center"]["alpha"]
        with stage("teacher"), torch.no_grad():
            embeddings = encode(self.teacher, views["teacher_global"])
            logits = self.teacher_head(embeddings).unflatten(0, (-1, size))
            self.center.accumulate(logits, batch["land_cover"])
            everywhere, frequent = self.center.centers
            targets = logits - alpha * everywhere - (1 - alpha) * frequent
        with stage("student"):
            groups = [views[name] for name in ("student_global", "student_local") if views[name].size]
            masks = self.masks(batch, [group.size for group in groups])
            tokens = [encode(self.student, *group) for group in zip(groups, masks, strict=True)]
            student = [view for of_size in tokens for view in self.student_head(of_size).unflatten(0, (-1, size))]
        with stage("loss"):
            loss = cross_entropy(student, list(targets), h["student_temp"], values.teacher_temp)
        self.log("train/loss", loss)
        crops = tokens[0].float().unflatten(0, (-1, size))
        if h["koleo"]:
            loss = loss + h["koleo"] * sum(self.koleo(crop) for crop in crops) / len(crops)
        if h["dimensions"]:
            sets = torch.zeros(2 * size, dtype=torch.int64)
            for name, idx in views["student_global"].sample_idx.items():
                sets[idx] += 2 ** list(MODALITIES).index(name)
            seen = normalize(tokens[0].float(), dim=-1)
            means = seen.mean(0).expand_as(seen).clone()
            for i in sets.unique() if len(sets) >= 32 else ():
                means[sets == i] = seen[sets == i].mean(0)
            values = torch.linalg.eigvalsh((seen - means).T @ (seen - means))
            loss = loss - h["dimensions"] * (values.sum() ** 2 / (values**2).sum()).log()
        if weight := h["contrast"]["weight"]:  # a view's own tile among all, as a class
            seen = [normalize(view, dim=-1) for of_size in tokens for view in of_size.unflatten(0, (-1, size))]
            keys, own = normalize(embeddings, dim=-1).unflatten(0, (-1, size)), torch.arange(size)
            pairs = [(view @ keys[t].T, own) for t in range(len(keys)) for s, view in enumerate(seen) if s != t]
            temp = h["contrast"]["temp"]
            loss = loss + weight * sum(nn.functional.cross_entropy(x / temp, y) for x, y in pairs) / len(pairs)
        return loss

    def masks(self, batch: dict[str, Any], sizes: list[int]) -> list[Masks]:
        """For each group the weights of all branches, from the same draws as the fast step's."""
        depth = batch["depth"]
        parts = iter(depth.keep_idx.split(depth.counts))
        masks: list[Masks] = [[] for _ in sizes]
        for rate in depth.rates:
            for size, of_group in zip(sizes, masks, strict=True):
                mask = torch.ones(size, device=self.device)
                if rate > 0:
                    mask = torch.zeros_like(mask).index_fill(0, next(parts), 1 / (1 - rate))
                of_group.append(mask)
        return masks
