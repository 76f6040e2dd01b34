"""The simulated planet: latent fields, land cover, sensors, and the files that they are written to.

``planet`` and ``latents`` draw random fields (``fields``) as functions of the place; ``surface`` makes land cover and
ground from them; ``optics`` and ``radar`` look at it; ``product`` says when and how; ``writer`` puts it in the formats
of Major-TOM and ESA WorldCover, and ``dataset`` reads it back.
"""

from .dataset import SimulatedWorld, simulate

__all__ = ["SimulatedWorld", "simulate"]
