"""The simulated planet: latent fields, land cover, sensors, and the files that they are written to.

``planet`` and ``latents`` draw random fields as functions of the place; ``land_cover`` and ``surface`` make
the ground from them; ``optics`` (with ``spectra`` and ``sky``) and ``radar`` look at it; ``product`` says
when and how; ``encode``, ``writer`` and ``maps`` put it in the formats of Major-TOM and ESA WorldCover.
"""

from .dataset import SimulatedWorld, simulate

__all__ = ["SimulatedWorld", "simulate"]
