"""What a tested run shows: numbers, plots, tables, the HTML report, TensorBoard's pictures, comparisons.

Nothing here trains or tests.
"""
