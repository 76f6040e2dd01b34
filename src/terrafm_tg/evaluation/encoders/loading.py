"""From a model's name to the adapter that loads it."""

import re

from terrafm_tg.datasets.bench import BenchDataset, BenchTask
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models.builders import BUILDERS

from .encoder import Encoder
from .request import Request
from .spec import ModelSpec

#: The baseline's name.
PIXEL_STATISTICS = "pixel-statistics"


def load(spec: ModelSpec, task: BenchTask, data: BenchDataset) -> Encoder:
    """See :func:`~terrafm_tg.evaluation.encoders.load_encoder`."""
    request = Request(spec, task, data)
    name = re.sub("^torchgeo/(?=terrafm_)", "", spec.model)
    if name in BUILDERS:
        from .terrafm import load_terrafm

        encoder = load_terrafm(request, name)
    elif name == PIXEL_STATISTICS:
        from .pixel_statistics import load_pixel_statistics

        encoder = load_pixel_statistics(request)
    elif name.startswith("timm/"):
        from .timm_models import load_timm

        encoder = load_timm(request)
    elif name.startswith("torchgeo/"):
        from .torchgeo_models import load_torchgeo

        encoder = load_torchgeo(request)
    else:
        raise TerraFMError(
            f"Model {spec.model!r} is unknown: use one of {', '.join(n for n in BUILDERS if n.count('_') == 1)}, "
            f"{PIXEL_STATISTICS}, timm/NAME or torchgeo/NAME."
        )
    return encoder.eval()
