"""The heads of Copernicus-Bench's frozen protocol."""

from collections.abc import Mapping

from torch import Tensor, nn

from terrafm_tg.evaluation.encoders.spec import BenchEncoder

from .heads import Head, LinearHead

#: Maps of more channels than any usual encoder has, such as pixels by patch, are first taken to ``NARROWED``.
WIDEST, NARROWED = 1536, 768


class NormedLinearHead(LinearHead):
    """Batch norm without parameters, then a linear layer, on an image's embedding.

    Args:
        dim: Width of the embedding.
        classes: Number of classes or labels.
        pooling: Which embedding: "token" or "mean", or the one that there is.
    """

    def __init__(self, dim: int, classes: int, pooling: str = "token") -> None:
        super().__init__(dim, classes, pooling)
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits (B, C)."""
        return super().forward(self.norm(features))


class PyramidHead(Head):
    """UPerNet on a learnt pyramid of four blocks' maps, and an auxiliary convolution on the third of them.

    The maps are taken to 4, 2, 1 and 1/2 times the patch grid. Of two dates the head sees the later features less the
    earlier ones, as the benchmark does for floods. The decoder is smp's, which normalises each map first.

    Args:
        dim: Width of the encoder's maps, those of all dates together.
        classes: Number of classes.
        dates: Images per sample.
        width: Channels of the decoder.
        auxiliary_width: Channels of the auxiliary head.
        dropout: Rate before the last layer of either.
    """

    def __init__(
        self, dim: int, classes: int, dates: int, width: int, auxiliary_width: int, dropout: float
    ) -> None:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        super().__init__()
        self.dates = dates
        dim //= dates
        self.narrow: nn.Module = nn.Identity()
        if dim > WIDEST:
            self.narrow, dim = nn.Conv2d(dim, NARROWED, 1), NARROWED
        self.pyramid = nn.ModuleList(
            [
                nn.Sequential(_twice(dim), nn.BatchNorm2d(dim), nn.GELU(), _twice(dim)),
                _twice(dim),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.decoder = UPerNetDecoder([0, 0, dim, dim, dim, dim], decoder_channels=width)
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))
        self.auxiliary = nn.Sequential(
            nn.Conv2d(dim, auxiliary_width, 3, padding=1, bias=False),
            nn.BatchNorm2d(auxiliary_width),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(auxiliary_width, classes, 1),
        )

    def read(self, encoder: BenchEncoder, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Four blocks' maps (B, D, h, w) of the one date, or of the change from the first date to the last."""
        maps = encoder.pyramid_inputs(batch)
        if self.dates == 1:
            return maps
        dates = [x.unflatten(1, (self.dates, -1)) for x in maps]
        return [x[:, -1] - x[:, 0] for x in dates]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (B, C, 4 h, 4 w), and the auxiliary ones (B, C, h, w)."""
        maps = [scale(self.narrow(x)) for scale, x in zip(self.pyramid, features, strict=True)]
        # The decoder skips the maps of full and half size.
        return [self.classify(self.decoder([maps[0], maps[0], *maps])), self.auxiliary(maps[2])]


def _twice(dim: int) -> nn.Module:
    """A learnt enlargement by 2."""
    return nn.ConvTranspose2d(dim, dim, 2, stride=2)
