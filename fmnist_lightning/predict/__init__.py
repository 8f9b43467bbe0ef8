"""From a user's pictures to classes.

Here belong the expansion of names to files, the preparation of pictures (28 x 28, light on dark), the classifier for
Python, the predict command, and bulk prediction. Models, their weights and test-time augmentation are in `models`; the
evaluation on a data set is in `training`.
"""
