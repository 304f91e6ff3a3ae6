"""Trajectory matching: experts' recorded paths, and the gradient of following them (MTT, TESLA, DATM and MCT).

`hypergradient` is the core, as a function anyone can use and check; the other modules record and store what it needs.
"""

from dim.trajectory.hypergrad import Derivatives, Hypergradient, hypergradient

__all__ = ["Derivatives", "Hypergradient", "hypergradient"]
