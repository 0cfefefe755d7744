"""The geometry of Floco: projection, sampling, assignment and mixing.

Notation: K clients, M endpoints. A mixture is a point alpha of the probability simplex: M numbers >= 0 with sum 1.
"""

from floco.core.mixing import Mixing
from floco.simplex.assignment import Assignment, assign, log_energy
from floco.simplex.projection import project
from floco.simplex.sampling import sample_released, sample_simplex, sample_subregion

__all__ = [
    "Assignment",
    "Mixing",
    "assign",
    "log_energy",
    "project",
    "sample_released",
    "sample_simplex",
    "sample_subregion",
]
