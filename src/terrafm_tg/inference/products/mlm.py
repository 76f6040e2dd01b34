"""The model that made embeddings, by its published weights: a STAC item of the MLM extension, licenses, statistics."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from terrafm_tg.modalities import MODALITIES, Modality
from terrafm_tg.transforms.statistics import with_statistics

#: Addresses of schemas of STAC's extensions, by name and version.
EXTENSIONS = "https://stac-extensions.github.io/{}/schema.json"
#: The end of an interval without one.
NO_END = "9999-12-31T23:59:59Z"
_SPDX = {name.lower(): name for name in ("MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0")}


def model_item(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describes the encoder by the MLM extension; None where no address of its weights is known."""
    from terrafm_tg.models.builders import default_cfgs
    from terrafm_tg.models.sizes import SIZES, split_name

    config = default_cfgs.get(str(about.get("weights")))
    if config is None or not config["url"]:
        return None
    size = split_name(str(about["weights"]))[0]
    modalities = modalities_of(about, MODALITIES)
    bands = {
        band: (one.unit, meters) for one in modalities for band, meters in zip(one.bands, one.resolutions, strict=True)
    }
    tasks = ["similarity-search"]
    inputs = [
        {
            "name": one.name, "description": f"{one.title} in {one.unit}", "bands": list(one.bands),
            "input": {"shape": [-1, len(one.bands), -1, -1], "dim_order": ["batch", "bands", "height", "width"],
                      "data_type": "float32"},
            "value_scaling": [
                {"type": "min-max", "minimum": round(mean - 2 * std, 6), "maximum": round(mean + 2 * std, 6)}
                for mean, std in zip(one.mean, one.std, strict=True)
            ],
        }
        for one in modalities
    ]  # fmt: skip
    result = {
        "shape": [-1, -1, SIZES[size]["embed_dim"]],
        "dim_order": ["batch", "token", "embedding"],
        "data_type": "float32",
    }
    return {
        "type": "Feature", "stac_version": "1.0.0",
        "stac_extensions": [EXTENSIONS.format(one) for one in ("mlm/v1.5.2", "raster/v1.1.0")],
        "id": size, "geometry": None,
        "properties": {
            "datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": NO_END,
            "title": config["paper_name"], "license": license_of(config)[0],
            "mlm:name": size, "mlm:architecture": "Vision Transformer", "mlm:tasks": tasks, "mlm:framework": "PyTorch",
            "mlm:pretrained": True, "mlm:input": inputs,
            "mlm:output": [{"name": "tokens", "tasks": tasks, "result": result}],
        },
        "links": [{"rel": "about", "href": config["origin_url"], "type": "text/html"}, *license_of(config)[1]],
        "assets": {
            "weights": {
                "href": config["url"], "type": "application/octet-stream; application=pytorch",
                "roles": ["mlm:model", "mlm:weights"], "mlm:artifact_type": "torch.save",
                "raster:bands": [
                    {"name": band, "unit": unit, "spatial_resolution": meters}
                    for band, (unit, meters) in bands.items()
                ],
            }
        },
    }  # fmt: skip


def modalities_of(about: Mapping[str, Any], names: Iterable[str]) -> list[Modality]:
    """Returns modalities with the statistics that the model normalizes by; unknown names are left out."""
    own = about.get("statistics")
    known = [MODALITIES[name] for name in names if name in MODALITIES]
    return [with_statistics(one, own if isinstance(own, Mapping) else None) for one in known]


def license_of(about: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """Returns the identifier and, for one that SPDX has, a link to its text."""
    given = str(about.get("license") or "other")
    name = _SPDX.get(given.lower(), given)
    if name in _SPDX.values():
        return name, [{"rel": "license", "href": f"https://spdx.org/licenses/{name}.html", "type": "text/html"}]
    return (name if re.fullmatch(r"[\w\-.+]+", name) else "other"), []
