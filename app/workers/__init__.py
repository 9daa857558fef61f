"""The service's side of a worker process: starting it, what is said to it and heard from it, which
workers are loaded within the memory budget, and on which device a model runs.

Knows no job beyond its id, no queue and no disk, and nothing of what happens inside the process:
that is runtime/.
"""
