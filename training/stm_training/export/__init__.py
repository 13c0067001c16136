"""From a model in memory to a retriever folder on disk, and the checks of such a folder.

Nothing is imported here, so that ``doctor`` works where torch is not installed.
"""
