"""Merges that are kept up to date: a tree over the sequence, of which one path changes at a time."""

from merger_plugins.tree.covering import frontier
from merger_plugins.tree.masses import LEAST_MASS, MOST_MASS, checked_masses
from merger_plugins.tree.rolling import RollingMerge

__all__ = ["LEAST_MASS", "MOST_MASS", "RollingMerge", "checked_masses", "frontier"]
