"""The command line: options from a dataclass, messages about mistakes, exit statuses, launchers.

Everything here is free of torch. The commands themselves are in runs/commands.py.
"""
