"""Show what a test found.

Analysis, plots and tables of predictions and metrics that exist, the HTML report, plots for loggers, and the
comparison of runs belong here. Code that trains or tests a model does not.
"""
