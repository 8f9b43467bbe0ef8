"""Data sets, from files to the batches that a model takes: read, split, shuffled, augmented.

Nothing here knows a model or a metric.
"""
