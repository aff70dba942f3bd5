"""Mergers: sequences of chunk vectors in, one vector out."""
