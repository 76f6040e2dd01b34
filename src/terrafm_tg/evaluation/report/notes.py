"""What stands between our scores and the published ones, protocol by protocol."""

#: Headings.
TITLES = {
    "knn": "k-NN",
    "linear-probe": "Linear probe",
    "logistic": "Logistic regression",
    "segmentation-probe": "Segmentation probe",
    "upernet": "UPerNet on a frozen encoder",
    "finetune": "Fine-tuning",
    "copernicus-frozen": "Frozen encoder, Copernicus-Bench's protocol",
}
_NAMES = (
    "The band names that {} carries are wrong. Published scores were probably made with them as labelled; "
    "rows that do not say “as labelled” use the corrected names."
)
_L2A = (
    "{} holds Level-2A images. The code published with TerraFM reaches only its Level-1C stem; a score made with it "
    "differs from one of the stem s2l2a."
)
#: What to know about the scores of a protocol.
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
#: What to know about the scores of a dataset.
BY_DATASET = {
    "m-eurosat": _NAMES.format("m-eurosat"),
    "m-brick-kiln": _NAMES.format("m-brick-kiln"),
    "m-bigearthnet": _L2A.format("m-bigearthnet"),
    "BigEarthNet-S2": _L2A.format("BigEarthNet-S2"),
}
INTERVALS = (
    "Small figures: 95 % confidence intervals, ± by Student's t over seeds; with one seed, or seeds that agree, "
    "Wilson's binomial interval where the score is a share of test images, else none. ▲ above, ▼ below the published "
    "score by more than the interval and its rounding, ≈ within it; without an interval nothing is said. An interval "
    "over seeds covers what training draws, not which images the test split holds."
)
OTHER_SPLIT = (
    "Not to be compared with the published scores, because the test split has another size: {}. Differences are shown "
    "and not judged."
)
EMPTY = "There are no results yet: nothing was run, or every unit was skipped."
