"""The facts of models and the files they consist of: families, catalog, limits, manifests.

Knows no device, process or network. How a model runs, its family's pipeline.py knows; how its files
get here, app/installation.
"""
