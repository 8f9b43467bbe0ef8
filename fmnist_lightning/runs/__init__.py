"""What a run leaves on disk: its folder, options, checkpoints, loggers and environment record.

Nothing here trains, tests or plots.
"""
