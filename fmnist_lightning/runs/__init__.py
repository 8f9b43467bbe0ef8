"""What a run leaves on disk: its folder, options, checkpoints and environment record, and atomic file writes.

Nothing here trains, tests or plots.
"""
