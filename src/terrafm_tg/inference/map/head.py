"""Fine-tuned tasks out of their checkpoints: what each predicts, of which bands, and of images of which size."""

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn
from torchgeo.tasks import BaseTask, ChangeDetection, Classification, PixelwiseRegression, Regression

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.models import TerraFMViT
from terrafm_tg.models.inputs import PATCH_SIZE, guess_modality
from terrafm_tg.models.registration import register
from terrafm_tg.tasks import FineTuneClassification
from terrafm_tg.tasks.checkpoint_io import check_is_file
from terrafm_tg.tasks.finetune.task import TRAINED_ON, SensorTask
from terrafm_tg.transforms.statistics import find_statistics
from terrafm_tg.utils.tensor_files import load_archive

#: The tasks that a checkpoint may be of, those with settings of their own first. Nothing else is imported by its word.
_TASKS = {
    "terrafm_tg.tasks": (
        "FineTuneClassification",
        "FineTuneSegmentation",
        "FineTuneChangeDetection",
        "TerraFMSegmentation",
        "TerraFMPixelwiseRegression",
    ),
    "torchgeo.tasks": (
        "SemanticSegmentation",
        "ChangeDetection",
        "Classification",
        "PixelwiseRegression",
        "Regression",
    ),
}
_KNOWN = ", ".join(name for names in _TASKS.values() for name in names)
#: What smp's encoders need a side to be divisible by.
_DIVISOR = 32

#: What is made of a head's outputs.
Kind = Literal["multiclass", "binary", "multilabel", "regression"]


@dataclass(frozen=True)
class TunedHead:
    """A task that was fine-tuned, and what a map must know of it.

    Args:
        task: In evaluation mode, on the CPU.
        kind: One class per place, one of two, several labels, or numbers.
        tile: One prediction per image, not per pixel.
        dates: Images of one place that it compares: 1, or 2.
        names: Of the classes (of ``binary`` both), labels or numbers; empty where nothing tells them.
        outputs: How many numbers it predicts per place: 1 for ``binary``.
        bands: Bands that it reads, in order, by modality.
        statistics: Mean and standard deviation that its images were normalized with, by modality; the published ones
            where None.
        divisor: What the sides of its images must be divisible by.
        image_size: Edge in pixels of the images that it was trained on, as their files had them; None if not known.
        input_size: Edge that they were resized to; None where they were not.
    """

    task: BaseTask
    kind: Kind
    tile: bool
    dates: int
    names: tuple[str, ...]
    outputs: int
    bands: Mapping[str, tuple[str, ...]]
    statistics: Mapping[str, Any] | None
    divisor: int
    image_size: int | None
    input_size: int | None

    @property
    def ours(self) -> bool:
        """True where its images are normalized as a TerraFM encoder expects them."""
        return self.divisor == PATCH_SIZE

    @property
    def classes(self) -> int:
        """Number of classes of the map: of ``multilabel`` one more, for none of the labels; 0 of numbers."""
        return {"multiclass": self.outputs, "binary": 2, "multilabel": self.outputs + 1, "regression": 0}[self.kind]


def load_head(
    path: str | os.PathLike[str],
    task: str | None = None,
    modality: str | None = None,
    bands: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> TunedHead:
    """Loads a task from its Lightning checkpoint, of which nothing but tensors and plain values is read.

    Args:
        path: The checkpoint, or the folder of a run that has one.
        task: The task's class, where the checkpoint is of one of the user's own: ``package.module.Class``.
        modality: What the images are, for a task without a TerraFM encoder.
        bands: Their bands in order, likewise; all of the modality's by default.
        labels: Names of the classes; those of the checkpoint by default.

    Raises:
        TerraFMError: If it is no checkpoint of a task with a head, or lacks what a map must know.
    """
    register()
    file = find_run(path)
    checkpoint = load_archive(file)
    module = _build(file, checkpoint, task).eval().requires_grad_(False)
    told = checkpoint.get(TRAINED_ON)
    told = told if isinstance(told, Mapping) else {}
    kind = _kind(module)
    h = module.hparams
    number = (
        h.get("num_outputs") if kind == "regression" else h.get("num_labels" if kind == "multilabel" else "num_classes")
    )
    outputs = 1 if kind == "binary" or isinstance(module, PixelwiseRegression) else int(number or 1)
    read, statistics, divisor = _inputs(file, module, told, modality, bands)
    head = TunedHead(
        module,
        kind,
        isinstance(module, Classification | FineTuneClassification)
        or (isinstance(module, Regression) and not isinstance(module, PixelwiseRegression)),
        2 if isinstance(module, ChangeDetection) else 1,
        (),
        outputs,
        read,
        statistics,
        divisor,
        *_sizes(told),
    )
    names = _names(head, labels, [h.get("labels"), told.get("classes")])
    return TunedHead(**{**vars(head), "names": names})


def find_run(path: str | os.PathLike[str]) -> Path:
    """Finds the checkpoint of a run: the file itself, or in a folder the one that was kept, else the last.

    Raises:
        TerraFMError: If there is none, or several.
    """
    given = Path(path)
    if not given.is_dir():
        check_is_file(given)
        return given
    found = sorted(given.rglob("*.ckpt"))
    kept = [file for file in found if not file.stem.startswith("last")] or found
    if not kept:
        raise TerraFMError(f"{given} holds no checkpoint: correct `ckpt_path`.")
    if len(kept) > 1:
        raise TerraFMError(
            f"{given} holds {len(kept)} checkpoints, such as {kept[0].relative_to(given)} and "
            f"{kept[1].relative_to(given)}: give one of them as `ckpt_path`."
        )
    return kept[0]


def _build(file: Path, checkpoint: Any, task: str | None) -> BaseTask:
    """Builds the task of a checkpoint: the one that is named, else the first that its settings and tensors fit."""
    settings = checkpoint.get("hyper_parameters") if isinstance(checkpoint, Mapping) else None
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(state, Mapping):
        raise TerraFMError(
            f"{file} is no checkpoint of a fine-tuned task (it has no settings or no `state_dict`): give one that "
            "Lightning saved of a task with a head."
        )
    # `weights` of the start are replaced by the checkpoint's own; what begins with _ is Lightning's.
    settings = {str(k): v for k, v in settings.items() if k != "weights" and not str(k).startswith("_")}
    for name in ("model", "backbone"):
        if any(mark in str(settings.get(name, "")) for mark in (":", "/", "\\")):
            raise TerraFMError(
                f"{file} names {settings[name]!r} as `{name}`: a checkpoint may name a model that is installed, no "
                "address and no file."
            )
    if isinstance(settings.get("statistics"), str | os.PathLike):
        raise TerraFMError(f"{file} names a file of statistics, which is not opened: save the numbers themselves.")
    reasons: list[str] = []
    candidates = [_named(task)] if task else _candidates(settings)
    for kind in candidates:
        try:
            module = kind(**settings)
            module.on_load_checkpoint(dict(checkpoint))
            module.load_state_dict(state)
        except Exception as error:  # whatever a library raises of settings or tensors that are not its own
            why = " ".join(str(error).split())[:300] or type(error).__name__
            reasons.append(f"{kind.__name__}: {why}")
            continue
        return module
    if reasons:
        raise TerraFMError(
            f"{file} fits no task (of the nearest, {reasons[0]}): name the class that it was trained as with `task`, "
            "and use the versions of that run."
        )
    pretrained = "teacher" in " ".join(list(state)[:2000])
    why = "is of pretraining and has no head" if pretrained else "is of no task that is known"
    raise TerraFMError(
        f"{file} {why}: give the checkpoint of a fine-tuned task ({_KNOWN}), or name its class with `task`; `terrafm "
        "embed` maps an encoder without a head."
    )


def _named(task: str) -> type[BaseTask]:
    """The class that the user names."""
    package, _, name = (task if "." in task else f"terrafm_tg.tasks.{task}").rpartition(".")
    try:
        found = getattr(import_module(package), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise TerraFMError(f"`task` {task!r} cannot be imported ({error}): give package.module.Class.") from error
    if not (isinstance(found, type) and issubclass(found, BaseTask)):
        raise TerraFMError(f"`task` {task!r} is no task of TorchGeo: give a subclass of one with a head ({_KNOWN}).")
    return found


def _candidates(settings: Mapping[str, Any]) -> list[type[BaseTask]]:
    """The known tasks that take such settings, those with the fewest others first."""
    found: list[tuple[int, int, type[BaseTask]]] = []
    for package, names in _TASKS.items():
        for name in names:
            kind = cast("type[BaseTask]", getattr(import_module(package), name))
            inits = [inspect.unwrap(vars(c)["__init__"]) for c in kind.__mro__ if "__init__" in vars(c)]
            accepted = {parameter for init in inits for parameter in inspect.signature(init).parameters}
            if {"model", "lr"} <= settings.keys() <= accepted:
                found.append((len(accepted - settings.keys()), len(found), kind))
    return [kind for *_, kind in sorted(found, key=lambda x: x[:2])]


def _kind(task: BaseTask) -> Kind:
    if isinstance(task, Regression):
        return "regression"
    return cast("Kind", task.hparams.get("task", "multiclass"))


def _inputs(
    file: Path, task: BaseTask, told: Mapping[str, Any], modality: str | None, bands: Sequence[str] | None
) -> tuple[dict[str, tuple[str, ...]], Mapping[str, Any] | None, int]:
    """Bands by modality, statistics, and what sides must be divisible by."""
    h = task.hparams
    encoder = next((m for m in cast("nn.Module", task).modules() if isinstance(m, TerraFMViT)), None)
    if encoder is None:
        if modality is None:
            raise TerraFMError(
                f"Nothing says what images {file} reads, since its {h.get('backbone') or h.get('model')!r} is no "
                f"TerraFM: give `model_modality` ({', '.join(MODALITIES)}), and `model_bands` unless it reads all."
            )
        sensor = get_modality(modality)
        picked = sensor.channel_names(sensor.stem_columns(sensor.bands if bands is None else bands))
        if len(picked) != h.get("in_channels"):
            raise TerraFMError(
                f"{file} reads {h.get('in_channels')} channels, and `model_bands` of {modality} are {len(picked)} "
                f"({', '.join(picked)}): give those that it was trained with, in their order."
            )
        return {sensor.name: picked}, None, _DIVISOR
    if modality is not None or bands is not None:
        raise TerraFMError(f"{file} says itself what it reads: leave `model_modality` and `model_bands` out.")
    if isinstance(task, SensorTask):
        known = [m.name for m in MODALITIES.values() if m.key in (told.get("image_size") or {})]
        names = task.images.modalities or known or list(MODALITIES)
        statistics = h["statistics"]
    else:
        names = [encoder.modality or guess_modality(h["in_channels"], encoder.columns)]
        statistics = find_statistics(told.get("statistics"))
    columns = encoder.columns
    return {n: get_modality(n).channel_names(columns[n]) for n in names}, statistics, PATCH_SIZE


def _sizes(told: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Edge of the images of the training, and that of the model's input where it is another."""
    edges = []
    for key in ("image_size", "input_size"):
        sizes = told.get(key)
        values = [x for size in sizes.values() for x in size] if isinstance(sizes, Mapping) else []
        edges.append(max((x for x in values if type(x) is int and x > 0), default=None))
    image, read = edges
    return image, None if read == image else read


def _names(head: TunedHead, labels: Sequence[str] | None, told: Sequence[Any]) -> tuple[str, ...]:
    """Names of classes, labels or numbers: the user's, or the first of the checkpoint's that are as many."""
    count = 2 if head.kind == "binary" else head.outputs
    if labels is not None and len(labels) not in (count, *([1] if head.kind == "binary" else [])):
        raise TerraFMError(f"`labels` names {len(labels)}, and the head predicts {count}: name each of them.")
    for names in (labels, *told):
        if isinstance(names, Sequence) and not isinstance(names, str):
            texts = tuple(str(name) for name in names)
            if head.kind == "binary" and len(texts) == 1:
                texts = (f"not {texts[0]}", texts[0])
            if len(texts) == count:
                return texts
    return ()
