"""Published scores, the models of ours that they belong to, and what to know before comparing the two.

``published_scores.csv`` holds the scores printed in Danish et al., *TerraFM: A Scalable Foundation Model for Unified
Multisensor Earth Observation*, ICLR 2026, https://arxiv.org/abs/2506.06281: k-NN, fine-tuning and segmentation on
GEO-Bench, the frozen protocol on Copernicus-Bench, and Landslide4Sense. All are in percent and rounded to 0.1. Scores
of other models are as that paper prints them; it seems to have taken most from the papers of Galileo
(https://arxiv.org/abs/2502.09356) and Copernicus-FM (https://arxiv.org/abs/2503.11849).
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import pandas as pd

#: Half of the last printed digit.
ROUNDING = 0.05
#: Protocols whose published scores go by another name.
PROTOCOL_NAMES = {"copernicus-frozen": "frozen"}

#: A pattern of "<model> <weights>" in a configuration; the published model and backbones that it stands for.
_COUNTERPARTS = (
    (r"terrafm_base", "TerraFM", ("ViT-Base", "ViT-B/16", "")),
    (r"terrafm_large", "TerraFM", ("ViT-Large",)),
    (r"dofa_base", "DOFA", ("ViT-Base", "ViT-B/16")),
    (r"dofa_large", "DOFA", ("ViT-Large",)),
    (r"croma_base", "CROMA", ("ViT-Base", "ViT-B/8")),
    (r"croma_large", "CROMA", ("ViT-Large",)),
    (r"copernicusfm_base", "Copernicus-FM", ("ViT-Base", "ViT-B/16")),
    (r"vit_?small.*softcon", "SoftCon", ("ViT-Small",)),
    (r"vit_?base.*softcon", "SoftCon", ("ViT-Base", "ViT-B/14")),
    (r"vit_?small.*decur", "DeCUR", ("ViT-Small",)),
    (r"swin_?(v2_)?t.*satlas", "Satlas", ("Swin-Tiny",)),
    (r"swin_?(v2_)?b.*satlas", "Satlas", ("Swin-Base",)),
    (r"vit_?base_?patch16.* random", "Random", ("ViT-B/16",)),
)

#: Protocols in words, in the order of a report.
TITLES = {
    "knn": "k-NN",
    "linear-probe": "Linear probe",
    "logistic": "Logistic regression",
    "segmentation-probe": "Segmentation probe",
    "upernet": "UPerNet on a frozen encoder",
    "finetune": "Fine-tuning",
    "copernicus-frozen": "Frozen encoder, Copernicus-Bench's protocol",
}
#: Notes on the scores of a protocol.
BY_PROTOCOL = {
    "knn": "The paper states neither k, distance nor pooling of its k-NN. Unless the settings below say otherwise this "
    "is Galileo's, whose scores the paper seems to repeat: k = 20, cosine, votes exp(cos/0.07).",
    "segmentation-probe": "The settings of the paper's segmentation scores are not published; this is Galileo's probe, "
    "a linear layer per patch.",
    "finetune": "The paper's settings of fine-tuning are not published; the sweep here is Galileo's.",
    "copernicus-frozen": "Copernicus-Bench reports the mean of per-batch values, on which the batch size has a part; "
    "rows called “per-batch” do the same and are what published scores are compared with. Rows called “true” count "
    "all test samples or pixels at once.",
}
_NAMES = (
    "The band names that {} carries are wrong. Published scores were probably made with them as labelled; "
    "rows that do not say “as labelled” use the corrected names."
)
_L2A = (
    "{} holds Level-2A images. The code published with TerraFM reaches only its Level-1C stem; a score made with it "
    "differs from one of the stem s2l2a."
)
#: Notes on the scores of a dataset.
BY_DATASET = {name: _NAMES.format(name) for name in ("m-eurosat", "m-brick-kiln")}
BY_DATASET |= {name: _L2A.format(name) for name in ("m-bigearthnet", "BigEarthNet-S2")}


class Published(NamedTuple):
    """One printed score.

    Attributes:
        benchmark: "GEO-Bench", "Copernicus-Bench" or "Landslide4Sense".
        protocol: "knn", "finetune", "segmentation-probe" or "frozen".
        train_fraction: Of the train split.
        dataset: As in :data:`terrafm_tg.datasets.bench.TASKS`.
        metric: "accuracy", "f1", "map", "oa", "miou" or "iou_landslide".
        model: The method.
        backbone: Empty if it was not printed.
        score: In percent.
    """

    benchmark: str
    protocol: str
    train_fraction: float
    dataset: str
    metric: str
    model: str
    backbone: str
    score: float

    @property
    def label(self) -> str:
        """Method and backbone."""
        return ", ".join(filter(None, (self.model, self.backbone)))


def published_scores() -> list[Published]:
    """Returns the printed scores, in the order of the paper's tables."""
    with (files("terrafm_tg.evaluation") / "published_scores.csv").open() as file:
        return [Published(*row) for row in pd.read_csv(file, keep_default_na=False).itertuples(index=False)]


def counterparts(published: Sequence[Published], model: str, weights: str | None) -> list[Published]:
    """Returns the published scores of a model of ours: those of the same method and backbone.

    Args:
        published: Some of :func:`published_scores`.
        model: As a configuration names it, such as ``"torchgeo/dofa_base_patch16_224"``.
        weights: Likewise; None for random ones, whose only counterparts are rows called "Random".
    """
    ours = f"{model} {weights or 'random'}".lower()
    known = [
        (method, backbones)
        for pattern, method, backbones in _COUNTERPARTS
        if re.search(pattern, ours) and (weights is None) == (method == "Random")
    ]
    return [
        score
        for score in published
        if any(re.sub(r" \(\d+M\)", "", score.model) == method and score.backbone in b for method, b in known)
    ]


def highest(published: Sequence[Published]) -> Published | None:
    """Returns the highest of some scores, None of none."""
    return max(published, key=lambda score: score.score, default=None)
