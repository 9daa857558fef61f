"""The phases of a job and the moves between them. Knows no job.

QUEUED    waits in the queue
HANDED    still waits, but its worker has it next (prefetched)
DRAWING   occupies its device: the pipeline is loaded if need be, then the pictures are drawn
ENCODING  drawn; the device is free while the pictures become files
ENDING    its end is on the way to the disk and cannot change any more
ENDED     recorded: succeeded, failed or canceled
"""

from enum import StrEnum


class Phase(StrEnum):
    QUEUED = "queued"
    HANDED = "handed"
    DRAWING = "drawing"
    ENCODING = "encoding"
    ENDING = "ending"
    ENDED = "ended"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.HANDED, Phase.DRAWING, Phase.ENDING}),
    Phase.HANDED: frozenset({Phase.QUEUED, Phase.DRAWING, Phase.ENDING}),
    Phase.DRAWING: frozenset({Phase.QUEUED, Phase.ENCODING, Phase.ENDING}),
    Phase.ENCODING: frozenset({Phase.QUEUED, Phase.ENDING}),
    Phase.ENDING: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


class WrongMove(AssertionError):
    """A move that the phases do not allow: an error in Easel, never a caller's."""


def moved(here: Phase, there: Phase) -> Phase:
    """The phase after a move; raises WrongMove where none leads from here to there."""
    if there not in MOVES[here]:
        raise WrongMove(f"no move leads from {here} to {there}")
    return there
