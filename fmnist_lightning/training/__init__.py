"""The LightningModule, optimizers, callbacks, resume and devices, and the two commands: train and evaluate.

Nothing here knows pictures of users or the search.
"""
