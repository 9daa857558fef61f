"""Getting a model's weights: from the hub or a file, converted where needed, whole or not at all.

Runs in a process of its own; the service only starts it and hears how far it is (child.py).
"""
