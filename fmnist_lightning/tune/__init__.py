"""The hyperparameter search: an Optuna study whose trials are trainings, scored on the validation split.

Here belong the search space, the trials, their database, and what a search writes. Training itself does not.
"""

from fmnist_lightning.cli.shell import require

require(["optuna"], "a search", "tune")
