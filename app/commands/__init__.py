"""What the command line does: one file per command, assembled in app/__main__.py. Knows settings,
models and workers, not the queue or the engine; a command needs no running service.

Modules named after a command import at their top only what `--help` needs, so that no command
loads what another one uses.
"""
