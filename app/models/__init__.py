"""The facts of models and the files they consist of: families, catalog, limits, manifests.

Knows no device, process or network; how a model runs is its family's pipeline.py. Getting the files
is app/installation's.
"""
