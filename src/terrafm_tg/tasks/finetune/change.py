"""Fine-tuning for change detection: TorchGeo's task and models, optimised as the other fine-tuning tasks."""

from typing import Any

from torchgeo.tasks import ChangeDetection

from terrafm_tg.models.inputs import guess_modality

from .encoder import freeze_unread
from .optimization import FineTuneOptimization, encoder_of


class FineTuneChangeDetection(FineTuneOptimization, ChangeDetection):
    """TorchGeo's change detection with warm-up, cosine and layer-wise learning-rate decay.

    Batches hold ``image`` (B, 2, C, H, W), two dates of one sensor, normalised, and ``mask``. The stems of other
    sensors stay as they are.

    Args:
        lr: Peak learning rate of the decoder.
        min_lr: Its value at the end of the cosine.
        warmup_epochs: Linear warm-up.
        weight_decay: Weight decay; none on biases, other 1-D tensors, class token and positions.
        layer_decay: Factor from a block's learning rate to that of the block below; 1 for none.
        **kwargs: Settings of :class:`torchgeo.tasks.ChangeDetection`, with a ``backbone`` such as
            ``terrafm_base_s2l1c``; its ``patience`` has no meaning here.

    Raises:
        TerraFMError: If a setting is impossible, or the backbone is not a TerraFM.
    """

    def __init__(
        self,
        *,
        lr: float = 5e-4,
        min_lr: float = 1e-6,
        warmup_epochs: float = 5,
        weight_decay: float = 0.05,
        layer_decay: float = 0.75,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)

    def configure_models(self) -> None:
        """Builds TorchGeo's model."""
        super().configure_models()
        encoder = encoder_of(self.model)
        sensor = encoder.modality or guess_modality(self.hparams["in_channels"], encoder.columns)
        freeze_unread(encoder, [sensor])
