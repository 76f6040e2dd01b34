"""Published scores, and which of them belongs to a model of ours.

``published_scores.csv`` holds the scores printed in Danish et al., *TerraFM: A Scalable Foundation Model for Unified
Multisensor Earth Observation*, ICLR 2026, https://arxiv.org/abs/2506.06281: k-NN, fine-tuning and segmentation on
GEO-Bench, the frozen protocol on Copernicus-Bench, and Landslide4Sense. All are in percent and rounded to 0.1. Scores of
other models are as that paper prints them; it seems to have taken most from the papers of Galileo
(https://arxiv.org/abs/2502.09356) and Copernicus-FM (https://arxiv.org/abs/2503.11849).
"""

import re
from importlib.resources import files

import pandas as pd

#: Half of the last printed digit.
ROUNDING = 0.05
#: Names of protocols here whose published scores go by another name.
PROTOCOL_NAMES = {"copernicus-frozen": "frozen"}
#: What identifies a published table's column.
KEYS = ["benchmark", "protocol", "train_fraction", "dataset", "metric"]

#: A pattern of "<model> <weights>" as `terrafm bench` takes them, and the published model and backbones that it stands for.
_COUNTERPARTS = (
    (r"terrafm_base", r"TerraFM", r"ViT-Base|ViT-B/16|"),
    (r"terrafm_large", r"TerraFM", r"ViT-Large"),
    (r"dofa_base", r"DOFA", r"ViT-Base|ViT-B/16"),
    (r"dofa_large", r"DOFA", r"ViT-Large"),
    (r"croma_base", r"CROMA", r"ViT-Base|ViT-B/8"),
    (r"croma_large", r"CROMA", r"ViT-Large"),
    (r"copernicusfm_base", r"Copernicus-FM", r"ViT-Base|ViT-B/16"),
    (r"vit_?small.*softcon", r"SoftCon", r"ViT-Small"),
    (r"vit_?base.*softcon", r"SoftCon", r"ViT-Base|ViT-B/14"),
    (r"vit_?small.*decur", r"DeCUR", r"ViT-Small"),
    (r"swin_?(v2_)?t.*satlas", r"Satlas", r"Swin-Tiny"),
    (r"swin_?(v2_)?b.*satlas", r"Satlas", r"Swin-Base"),
    (r"vit_?base_?patch16.* random", r"Random", r"ViT-B/16"),
)


def published_scores() -> pd.DataFrame:
    """The printed scores, one row each.

    Returns:
        Columns ``benchmark``, ``protocol``, ``train_fraction``, ``dataset``, ``metric``, ``model``, ``backbone`` (empty
        where not printed), ``score`` (percent) and ``label``, model and backbone in one.
    """
    with (files("terrafm_tg.evaluation") / "published_scores.csv").open() as file:
        table = pd.read_csv(file, keep_default_na=False)
    parts = (
        f"{model}, {backbone}".rstrip(", ")
        for model, backbone in zip(table.model, table.backbone, strict=True)
    )
    return table.assign(label=list(parts))


def counterparts(published: pd.DataFrame, model: str, weights: str | None) -> pd.DataFrame:
    """The published scores of a model of ours: those of the same method and backbone.

    Args:
        published: From :func:`published_scores`, or some of its rows.
        model: As a configuration names it, such as ``"torchgeo/dofa_base_patch16_224"``.
        weights: Likewise; None for random ones, whose only counterparts are rows called "Random".
    """
    ours = f"{model} {weights or 'random'}".lower()
    wanted = pd.Series(False, index=published.index)
    for pattern, method, backbone in _COUNTERPARTS:
        if re.search(pattern, ours) and (weights is None) == (method == "Random"):
            named = published.model.str.fullmatch(rf"{method}( \(\d+M\))?")
            wanted |= named & published.backbone.str.fullmatch(backbone)
    return published[wanted]
