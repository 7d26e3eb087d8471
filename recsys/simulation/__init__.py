"""A world whose truth is known: the embedded default data set."""

from recsys.simulation.simulator import SimulationReport, simulate
from recsys.simulation.truth import Truth
from recsys.simulation.world import SimulationConfig

__all__ = ["SimulationConfig", "SimulationReport", "Truth", "simulate"]
