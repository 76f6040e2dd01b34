"""Fusion of modalities at every position, by a few learned queries (paper: "Encoder", step 2)."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ModalityFusion(nn.Module):
    """Attention over the modalities of one position, shared by all positions.

    With values v_m (the tokens of the M modalities at one position), queries q_j, a key map W and a reduction
    p::

        a[m, j] = softmax_m(q_j . W v_m / sqrt(D))        attention of query j over the modalities
        w[j]    = softmax_j(sum_m a[m, j] v_m . p)        weight of query j
        z       = sum_j w[j] sum_m a[m, j] v_m
                = sum_m c[m] v_m,    c[m] = sum_j w[j] a[m, j]

    so it needs one number c[m] per token and modality, and W costs nothing, since q_j . W v_m = (W^T q_j) .
    v_m. The key map, its scale and the number of heads (one) are not in the paper. Queries ~ N(0, 0.02), W =
    0 and p = 0 make the start exactly the mean over modalities, from which all three learn.

    Args:
        dim: Width D of the tokens.
        num_queries: Number of queries (the paper's 5).
        device: Where to create the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
        self, dim: int, num_queries: int = 5, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, dim, device=device, dtype=dtype))
        self.key = nn.Parameter(torch.empty(dim, dim, device=device, dtype=dtype))
        self.reduction = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        """Random queries, and zeros elsewhere: the mean over modalities."""
        nn.init.normal_(self.queries, std=0.02)
        nn.init.zeros_(self.key)
        nn.init.zeros_(self.reduction)

    def forward(
        self,
        values: Sequence[Tensor],
        sample_idx: Sequence[Tensor] | None = None,
        size: int | None = None,
        through: Tensor | None = None,
    ) -> Tensor:
        """Fuses the tokens of each sample's own modalities.

        Args:
            values: Per modality (n_m, h, w, D), or any other shape between the first and the last.
            sample_idx: Per modality int64 (n_m,), the sample of each entry; None where every sample has every
                modality. With it, a sample of one modality keeps its tokens bit for bit.
            size: Number of samples B; needed with ``sample_idx``.
            through: A linear map (D, D) that the values have not passed yet and the result will: since the
                result is a weighted mean of them, to map it gives the same with less work.

        Returns:
            (B, h, w, D).
        """
        shares = self.shares(values, sample_idx, size, through)
        if sample_idx is None or size is None:
            return functools.reduce(torch.add, (c * v for c, v in zip(shares, values, strict=True)))
        fused = values[0].new_zeros(size, *values[0].shape[1:])
        for share, value, idx in zip(shares, values, sample_idx, strict=True):
            fused.index_add_(0, idx, share.index_select(0, idx) * value)
        return fused

    def shares(
        self,
        values: Sequence[Tensor],
        sample_idx: Sequence[Tensor] | None = None,
        size: int | None = None,
        through: Tensor | None = None,
    ) -> Tensor:
        """c[m] of the class's formula, zero where a sample lacks the modality; arguments as in ``forward``.

        Returns:
            (M, B, h, w, 1), in the type of the values.
        """

        def spread(scores: Tensor, index: int, absent: float) -> Tensor:
            """(n_m, ...) -> (B, ...), with ``absent`` for the samples without this modality."""
            if sample_idx is None or size is None:
                return scores
            return scores.new_full((size, *scores.shape[1:]), absent).index_copy(0, sample_idx[index], scores)

        with torch.autocast(values[0].device.type, enabled=False):
            keys = self.queries.float() @ self.key.float() * self.queries.shape[1] ** -0.5
            maps = torch.cat([keys, self.reduction.float()[None]])  # (queries + 1, D)
            maps = maps if through is None else maps @ through.float()
        # One product gives both inner products; both softmaxes and the sums between them are in fp32.
        scores = [nn.functional.linear(value, maps.to(value.dtype)).float() for value in values]
        attention = torch.stack([spread(s[..., :-1], m, -torch.inf) for m, s in enumerate(scores)]).softmax(0)
        reduced = torch.stack([spread(s[..., -1:], m, 0.0) for m, s in enumerate(scores)])
        weights = (attention * reduced).sum(0).softmax(-1)
        shares = (attention * weights).sum(-1, keepdim=True)
        if sample_idx is not None:
            present = torch.stack([spread(s.new_ones(len(s)), m, 0.0) for m, s in enumerate(scores)])  # (M, B)
            alone = present.sum(0) == 1
            between = (1,) * (shares.ndim - 2)
            shares = torch.where(alone.view(-1, *between), present.view(*present.shape, *between), shares)
        return shares.to(values[0].dtype)
