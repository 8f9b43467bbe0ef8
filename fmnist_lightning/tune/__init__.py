"""The hyperparameter search: Optuna's trials, each a training judged on the validation split."""
