"""Getting a model's weights: from the hub or a file, converted where needed, whole or not at all.

Runs in a process of its own, which the service starts and whose progress it reads (child.py), so
that the service loads neither the hub's client nor a converter. Does not know jobs or workers.
"""
