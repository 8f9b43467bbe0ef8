"""What a test found: analysis, plots, tables, the HTML report, plots for TensorBoard, and the comparison of runs.

Everything here reads predictions and metrics that exist; code that trains or tests a model belongs elsewhere.
"""
