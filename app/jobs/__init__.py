"""A job from its acceptance to its end: phases, queue, dispatcher, records on the disk.

Knows workers by their handles and models by their names. Knows no HTTP, no dialect and no pixels;
faces reach it through the engine.
"""
