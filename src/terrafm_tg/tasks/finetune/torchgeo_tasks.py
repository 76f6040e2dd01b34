"""TorchGeo's dense tasks, with the heads, inputs and optimization that TorchGeo and smp have no way to."""

from collections.abc import Sequence
from typing import Any, Literal

import segmentation_models_pytorch as smp
import timm
from lightning.pytorch import LightningModule
from torch import nn
from torchgeo.tasks import ChangeDetection, PixelwiseRegression, SemanticSegmentation
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import load_encoder_state, load_weights
from terrafm_tg.models.inputs import PATCH_SIZE, guess_modality
from terrafm_tg.models.sizes import NAMES, SIZES, split_name
from terrafm_tg.models.smp_encoder import feature_blocks, smp_entry
from terrafm_tg.models.weights import registered_weights
from terrafm_tg.utils.arguments import COUNT, checked

from .encoder import freeze_unread
from .heads import PatchHead, allow_lone_samples
from .optimization import FineTuneOptimization, encoder_of
from .segmentation import Segmenter
from .task import LabelTask

#: Heads of the dense tasks.
DenseHead = Literal["upernet", "unet", "segformer", "dpt", "linear"]

_SMP = {"upernet": smp.UPerNet, "unet": smp.Unet, "segformer": smp.Segformer}


class DenseModelMixin(LightningModule):
    """Builds the model of a dense task.

    Args:
        model: ``upernet`` (features of blocks 4, 6, 8, 12), ``unet``, ``segformer``, ``dpt``, or ``linear``: from
            each patch token to the patch's pixels.
        backbone: ``terrafm_<size>``, or one of its variants by modality and for RGB.
        weights: A registered weight or its name, a file or URL of any kind that
            :func:`~terrafm_tg.models.load_encoder_state` reads; True for the size's registered weight.
        in_channels: Number of input channels.
        modality: What the images are, where the backbone's name does not say it.
        bands: Bands of the images in the order of their channels, where these are not the modality's own.
        kwargs: As the task's of TorchGeo.
    """

    weights: WeightsEnum | str | bool | None

    def __init__(
        self,
        model: DenseHead = "upernet",
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
            TerraFMError: If a name is unknown, the encoder cannot read such images, or the weights are missing,
                damaged or of another size.
        """
        h = self.hparams
        if h["backbone"] not in NAMES:
            raise TerraFMError(
                f"Backbone {h['backbone']!r} is unknown: use one of {', '.join(SIZES)}, alone or with an ending such "
                "as _s2l2a."
            )
        self.model = self._build(h.get("num_classes") or h.get("num_labels") or 1)
        if self.weights:
            size = split_name(h["backbone"])[0]
            source = registered_weights(size) if self.weights is True else self.weights
            state, meta = load_encoder_state(source, expected=size)
            load_weights(encoder_of(self.model), state, str(source), meta["statistics"])
        allow_lone_samples(self.model)
        if h["freeze_backbone"]:
            self.model.encoder.requires_grad_(False)
        if h["freeze_decoder"]:
            self.model.decoder.requires_grad_(False)

    def _build(self, classes: int) -> nn.Module:
        """The model with random weights."""
        h = self.hparams
        head, backbone, channels = h["model"], h["backbone"], h["in_channels"]
        settings = {name: h[name] for name in ("modality", "bands") if h[name] is not None}
        if head in _SMP:
            # smp hands no settings to an encoder of its table, so each set of settings is an entry there.
            entry = f"{backbone}({settings})" if settings else backbone
            smp.encoders.encoders.setdefault(entry, smp_entry(backbone, **settings))
            return _SMP[head](entry, encoder_weights=None, in_channels=channels, classes=classes)
        if head == "dpt":
            blocks = feature_blocks(SIZES[split_name(backbone)[0]]["depth"])
            settings |= {"encoder_weights": None, "encoder_output_indices": blocks}
            return smp.DPT(f"tu-{backbone}", in_channels=channels, classes=classes, **settings)
        if head == "linear":
            encoder = encoder_of(timm.create_model(backbone, in_chans=channels, **settings))
            return Segmenter(encoder, PatchHead(encoder.embed_dim, classes, PATCH_SIZE))
        raise TerraFMError(f"Head {head!r} is unknown: use one of {', '.join([*_SMP, 'dpt', 'linear'])}.")


@checked(in_channels=COUNT)
class TerraFMSegmentation(DenseModelMixin, LabelTask, SemanticSegmentation):
    """Semantic segmentation with any head, bands and weights.

    TorchGeo's own ``SemanticSegmentation`` runs TerraFM with ``upernet``, ``unet`` and ``segformer``. Missing upstream
    (TorchGeo 0.10, smp 0.6):

    * A linear head, the usual probe of dense features.
    * Weights with ``dpt``: smp takes only names that begin with ``tu-`` and holds the encoder as
      ``encoder.model``, while TorchGeo loads into ``encoder``.
    * ``modality`` and ``bands``: neither TorchGeo nor smp hands settings to an encoder.
    * Weights that are not a Lightning checkpoint, such as the published file.

    Args:
        kwargs: As :class:`DenseModelMixin`, and TorchGeo's: ``task``, ``num_classes``, ``loss``, ``lr``,
            ``freeze_backbone`` and so on.

    Raises:
        TerraFMError: If a name, the number of channels or the weights are wrong.
    """


@checked(in_channels=COUNT)
class TerraFMPixelwiseRegression(DenseModelMixin, PixelwiseRegression):
    """Pixelwise regression with any head, bands and weights; see :class:`TerraFMSegmentation` for what was missing.

    Args:
        kwargs: As :class:`DenseModelMixin`, and TorchGeo's: ``loss``, ``lr``, ``patience``, ``freeze_backbone``,
            ``freeze_decoder``.

    Raises:
        TerraFMError: If a name, the number of channels or the weights are wrong.
    """


@checked()
class FineTuneChangeDetection(FineTuneOptimization, LabelTask, ChangeDetection):
    """TorchGeo's change detection with warm-up, cosine and layer-wise learning-rate decay.

    Batches hold ``image`` (B, 2, C, H, W), two dates of one sensor, normalized, and ``mask``. The stems of other
    sensors stay as they are.

    Args:
        kwargs: As :class:`~terrafm_tg.tasks.finetune.optimization.FineTuneOptimization` and
            :class:`torchgeo.tasks.ChangeDetection`, with a ``backbone`` such as
            ``terrafm_base_s2l1c``; its ``patience`` has no meaning here.

    Raises:
        TerraFMError: If a setting is impossible, or the backbone is not a TerraFM.
    """

    def configure_models(self) -> None:
        """Builds TorchGeo's model."""
        super().configure_models()
        allow_lone_samples(self.model)
        encoder = encoder_of(self.model)
        sensor = encoder.modality or guess_modality(self.hparams["in_channels"], encoder.columns)
        freeze_unread(encoder, [sensor])
