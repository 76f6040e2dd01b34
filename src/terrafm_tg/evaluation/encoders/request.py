"""What is asked of a model's adapter: the specification, the task, and helpers to read its sensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from terrafm_tg.datasets.bench import BenchDataset, BenchTask

from .bands import equivalent, is_radar
from .channels import Channel, Source, find, unit_of, z_score
from .reader import Reader
from .spec import ModelSpec, UnsupportedTaskError


@dataclass(frozen=True)
class Request:
    """One model for one task.

    Args:
        spec: The model.
        task: The task as opened.
        data: Has its statistics.
    """

    spec: ModelSpec
    task: BenchTask
    data: BenchDataset

    @property
    def sensors(self) -> tuple[str, ...]:
        """The sensors that the model may use, in the task's order.

        Raises:
            UnsupportedTaskError: If the task has none of those asked for.
        """
        chosen = tuple(s for s in self.task.sensors if self.spec.sensors is None or s in self.spec.sensors)
        if not chosen:
            raise self.unsupported(
                f"it was to read {_words(self.spec.sensors or ())}, and the task has {_words(self.task.sensors)}"
            )
        return chosen

    @property
    def radar(self) -> tuple[str, ...]:
        """Those of them that are radars."""
        return tuple(sensor for sensor in self.sensors if is_radar(sensor))

    @property
    def optical(self) -> tuple[str, ...]:
        """Those of them that are not."""
        return tuple(sensor for sensor in self.sensors if not is_radar(sensor))

    @property
    def default(self) -> tuple[str, ...]:
        """What a model with a single input reads: the sensors asked for, else the first, optical before radar."""
        return self.sensors if self.spec.sensors is not None else (self.optical or self.radar)[:1]

    def size(self, patch: int, own: int | None = None) -> int:
        """Pixels that the model sees, whole patches.

        Args:
            patch: Pixels of a patch.
            own: The size of a model that has but one.
        """
        pixels = (own or self.task.input_size) if self.spec.size is None else self.spec.size or self.task.size
        return -(-pixels // patch) * patch

    def reader(
        self,
        channels: Sequence[Channel],
        size: int | None,
        sensors: Sequence[str] | None = None,
        sources: Sequence[Source | None] | None = None,
    ) -> Reader:
        """Reads what the model expects.

        Args:
            channels: The model's.
            size: Pixels that it sees.
            sensors: Which to read; all by default.
            sources: Where each channel comes from, where that is known already.

        Raises:
            UnsupportedTaskError: If the task has fewer than half of the bands.
        """
        if sources is None:
            bands = [channel.band for channel in channels]
            sources = find(self.task, sensors or self.sensors, bands, self.spec.absent)
            found = sum(source is not None for source in sources)
            if 2 * found < len(bands):
                raise self.unsupported(
                    f"the model reads {', '.join(bands)}, of which the task has {found or 'none'}"
                )
        return Reader(channels, sources, self.data, size, self.spec.normalization == "dataset")

    def own_channels(
        self, sensors: Sequence[str] | None = None, resembling: bool = False
    ) -> tuple[list[Channel], list[Source]]:
        """The task's bands as they are, normalised by the dataset's statistics; those of ``channels`` where given.

        Args:
            sensors: Which sensors; :attr:`default` by default.
            resembling: Leave out bands that no Sentinel band resembles.

        Raises:
            UnsupportedTaskError: If none is left.
        """
        channels, sources = [], []
        wanted = None if self.spec.channels in (None, ("all",)) else self.spec.channels
        for sensor in sensors or self.default:
            for index, band in enumerate(self.task.sensors[sensor]):
                name = equivalent(sensor, band)
                if (wanted is not None and not {band, name} & set(wanted)) or (resembling and name is None):
                    continue
                moments = float(self.data.mean[sensor][index]), float(self.data.std[sensor][index])
                channels.append(z_score(name or band, unit_of(sensor), moments[0], max(moments[1], 1e-6)))
                sources.append(Source(sensor, index))
        if not channels:
            raise self.unsupported(f"the task has none of the bands {_words(wanted or ())}")
        return channels, sources

    def unsupported(self, reason: str) -> UnsupportedTaskError:
        """The error that names model, task and reason."""
        return UnsupportedTaskError(f"{self.spec.model} cannot read {self.task.name}: {reason}.")


def _words(names: Iterable[str]) -> str:
    return ", ".join(str(name) for name in names) or "none"
