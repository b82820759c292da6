"""Scans of many shapes, spacings, orientations and intensity scales, brought to one grid and one scale.

Lazily: a prepared scan reads of the scan beneath the boxes that it needs, and only when it is asked.
"""

from models.learning.preparation.config import PreparationConfig
from models.learning.preparation.recipe import Preparation
from models.learning.preparation.scans import Caveat, PreparedScan, RawScan

__all__ = ["Caveat", "Preparation", "PreparationConfig", "PreparedScan", "RawScan"]
