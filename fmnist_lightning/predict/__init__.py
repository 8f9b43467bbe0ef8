"""From a user's pictures to classes.

Here belong the expansion of names to files, the preparation of pictures for a model, the classifier for Python, the
predict command, and bulk prediction. Models, their weights and test-time augmentation are in `models`, the decoding of
picture files is in `data`, and the evaluation on a data set is in `training`.
"""
