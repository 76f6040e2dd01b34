"""The model to judge, and the settings by which it reads images."""

from dataclasses import dataclass

from terrafm_tg.errors import TerraFMError


class UnsupportedTaskError(TerraFMError):
    """The model cannot read the task's images, or the protocol not its labels; a benchmark skips and names it."""


@dataclass(frozen=True)
class ModelSpec:
    """One model of ``terrafm bench``; every setting is a column of the results.

    Args:
        model: "terrafm_base", "timm/vit_small_patch16_224", "torchgeo/dofa_base_patch16_224", "pixel-statistics", ...
        weights: Path, URL or registered name; "default" for the model's own published ones; None for random ones.
        name: What the report calls it; model and weights where None.
        stem: The TerraFM modality that reads Sentinel-2, "s2l1c" or "s2l2a"; the dataset's own level where None.
        sensors: Which of the dataset's sensors to use; all that the model can read where None.
        pooling: "token" for the class token (or what else the model itself gives for an image), "mean" for the mean
            of the patch tokens.
        size: Pixels to resize to; None for the task's ``input_size`` (or the model's own, where it has but one), 0 for
            the stored size. Either is rounded up to whole patches.
        normalization: "model" for the statistics that it was trained with, "dataset" for the dataset's own. A sensor
            that the model was not trained on, such as an aerial photograph, is brought to the model's statistics by
            those of the dataset in either case.
        seed: Of random weights.
        channels: Bands to read, by name; ("all",) for all of the sensor's; those that the model was trained on where
            None.
        absent: What stands in for a band of the model that Sentinel-2 data lack: "neighbour" takes B02 for B01 and
            B8A for B09 as Galileo's protocol does, "mean" nothing. Any other band then counts as being at its
            training mean.
    """

    model: str
    weights: str | None = None
    name: str | None = None
    stem: str | None = None
    sensors: tuple[str, ...] | None = None
    pooling: str = "token"
    size: int | None = None
    normalization: str = "model"
    seed: int = 0
    channels: tuple[str, ...] | None = None
    absent: str = "neighbour"

    def __post_init__(self) -> None:
        choices = {
            "stem": (None, "s2l1c", "s2l2a"),
            "pooling": ("token", "mean"),
            "normalization": ("model", "dataset"),
            "absent": ("neighbour", "mean"),
        }
        for setting, allowed in choices.items():
            if getattr(self, setting) not in allowed:
                named = ", ".join(repr(choice) for choice in allowed)
                raise TerraFMError(
                    f"`{setting}` of model {self.model!r} is {getattr(self, setting)!r}: use one of {named}."
                )
        if self.size is not None and self.size < 0:
            raise TerraFMError(f"`size` of model {self.model!r} is {self.size}: use pixels, or 0 for the stored size.")
        for setting in ("sensors", "channels"):  # YAML gives a list, which would not be hashable
            given = getattr(self, setting)
            if given is not None:
                object.__setattr__(self, setting, (given,) if isinstance(given, str) else tuple(given))

    @property
    def label(self) -> str:
        """Name in the report."""
        return self.name or f"{self.model} ({self.weights or f'random, seed {self.seed}'})"
