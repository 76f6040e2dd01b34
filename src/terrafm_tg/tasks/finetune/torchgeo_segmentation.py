"""TorchGeo's dense tasks, with the heads and inputs that TorchGeo and smp have no way to."""

from collections.abc import Sequence
from typing import Any

from torchgeo.tasks import BaseTask, PixelwiseRegression, SemanticSegmentation
from torchvision.models._api import WeightsEnum

from .dense_model import Head, dense_model


class DenseModelMixin(BaseTask):
    """Builds the model of a dense task by :func:`~terrafm_tg.tasks.finetune.dense_model.dense_model`."""

    weights: WeightsEnum | str | bool | None

    def __init__(
        self,
        model: Head = "upernet",
        backbone: str = "terrafm_base",
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 12,
        modality: str | None = None,
        bands: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, backbone=backbone, weights=weights, in_channels=in_channels, **kwargs)

    def configure_models(self) -> None:
        """Initialize the model.

        Raises:
            TerraFMError: If a name, the number of channels or the weights are wrong.
        """
        names = ("backbone", "in_channels", "modality", "bands")
        classes = self.hparams.get("num_classes") or self.hparams.get("num_labels") or 1
        settings = {name: self.hparams[name] for name in names}
        self.model = dense_model(self.hparams["model"], classes=classes, weights=self.weights, **settings)
        if self.hparams["freeze_backbone"]:
            self.model.encoder.requires_grad_(False)
        if self.hparams["freeze_decoder"]:
            self.model.decoder.requires_grad_(False)


class TerraFMSegmentation(DenseModelMixin, SemanticSegmentation):
    """Semantic segmentation with any head, bands and weights.

    TorchGeo's own ``SemanticSegmentation`` runs TerraFM with ``upernet``, ``unet`` and ``segformer``. Missing upstream
    (TorchGeo 0.10, smp 0.6):

    * A linear head, the usual probe of dense features.
    * Weights with ``dpt``: smp takes only names that begin with ``tu-`` and holds the encoder as
      ``encoder.model``, while TorchGeo loads into ``encoder``.
    * ``modality`` and ``bands``: neither TorchGeo nor smp hands settings to an encoder.
    * Weights that are not a Lightning checkpoint, such as the published file.

    Args:
        model: ``upernet`` (features of blocks 4, 6, 8, 12), ``unet``, ``segformer``, ``dpt``, or ``linear``: from
            each patch token to the patch's pixels.
        backbone: ``terrafm_<size>``, or one of its variants by modality and for RGB.
        weights: A registered weight or its name, a file or a URL; True for the registered weight.
        in_channels: Number of input channels.
        modality: What the images are, where the backbone's name does not say it.
        bands: Bands of the images in the order of their channels, where these are not the modality's own.
        kwargs: As TorchGeo's: ``task``, ``num_classes``, ``loss``, ``lr``, ``freeze_backbone`` and so on.

    Raises:
        TerraFMError: If a name, the number of channels or the weights are wrong.
    """


class TerraFMPixelwiseRegression(DenseModelMixin, PixelwiseRegression):
    """Pixelwise regression with any head, bands and weights; see :class:`TerraFMSegmentation` for what was missing.

    Args:
        model: ``upernet``, ``unet``, ``segformer``, ``dpt`` or ``linear``.
        backbone: ``terrafm_<size>``, or one of its variants by modality and for RGB.
        weights: A registered weight or its name, a file or a URL; True for the registered weight.
        in_channels: Number of input channels.
        modality: What the images are, where the backbone's name does not say it.
        bands: Bands of the images in the order of their channels, where these are not the modality's own.
        kwargs: As TorchGeo's: ``loss``, ``lr``, ``patience``, ``freeze_backbone``, ``freeze_decoder``.

    Raises:
        TerraFMError: If a name, the number of channels or the weights are wrong.
    """
