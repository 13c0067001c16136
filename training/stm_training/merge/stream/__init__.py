"""Merge folders on disk, block by block, in memory that does not grow with the model."""
