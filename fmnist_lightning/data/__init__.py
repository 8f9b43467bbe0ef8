"""Data sets, the validation split, batches and augmentation, from files to the tensors that a net takes.

Nothing here knows a net or a metric.
"""
