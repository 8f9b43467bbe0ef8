"""Run folders, checkpoints, atomic files and the record of the environment.

What a run leaves on disk, and how it is found and read again. Nothing here trains, tests or draws.
"""
