"""The worker's side: loads a model on a device and draws with it. The only package with numpy and
native code; main.py runs it as a worker process, `load` serves a Python shell as well.

Knows recipes, pictures and the messages of a worker; no queue, no store, no HTTP. The service's own
process imports nothing from here. Runtimes are imported by the families that need them.
"""

from app.runtime.family import load
from app.runtime.protocol import Inputs

__all__ = ["Inputs", "load"]
