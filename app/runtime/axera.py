"""Axera's NPUs: opens compiled graphs on them, lists them, and keeps a card to one process. Knows
no model.

axengine, Axera's Python runtime, is on no package index and cannot be imported without the driver's
library. So it is imported where it is needed, and every failure says what to install.
"""

import ctypes.util
import fcntl
import importlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.device import Device
from app.errors import GenerationFailed, LoadFailed

CARD_PROVIDER = "AXCLRTExecutionProvider"  # axengine's for M.2 cards; its other one is for boards
PCI_DEVICES = Path("/sys/bus/pci/devices")
_PCI_ID = ["0x1f4b", "0x0650"]  # vendor and device of an AX650N
# What axengine raises when a driver call fails or an array does not fit.
_DRIVER_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, OSError)


class Node(Protocol):
    """An input or output of a graph, as axengine describes it."""

    name: str
    shape: Sequence[int]
    dtype: Any


class Session(Protocol):
    """The part of axengine.InferenceSession that is used here."""

    def get_inputs(self) -> Sequence[Node]: ...
    def get_outputs(self) -> Sequence[Node]: ...
    def run(
        self, output_names: None, input_feed: Mapping[str, NDArray[Any]]
    ) -> Sequence[NDArray[Any]]: ...


def import_axengine() -> Any:
    """The axengine module; raises LoadFailed that says what is missing."""
    ctypes.util.find_library = _find_library
    try:
        return importlib.import_module("axengine")
    except ModuleNotFoundError as error:
        raise LoadFailed(
            f"The Python package {error.name} is not installed. axengine is on no package index: "
            "download its wheel and run AXENGINE_WHEEL=<path or address> axera/setup.sh."
        ) from error
    except (ImportError, *_DRIVER_ERRORS) as error:
        raise LoadFailed(
            "Axera's driver is missing: neither libaxcl_rt (M.2 card) nor libax_engine (board) is "
            f"found. Install it as docs/axera.md says. axengine: {_sentence(error)}"
        ) from error


_find_by_system = ctypes.util.find_library


def _find_library(name: str) -> str | None:
    """Takes the place of ctypes.util.find_library, by which axengine looks for the driver.

    Python's own function asks the loader's cache and a linker. In a container there may be no
    linker, and a driver that was mounted is in no cache; so the folders of LD_LIBRARY_PATH, which
    the loader would search, come first.
    """
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        path = Path(folder) / f"lib{name}.so"
        if path.exists():
            return str(path)
    return _find_by_system(name)


def card_index(device: str) -> int:
    """The number of the card that AXERA (the first), AXERA.0, AXERA.1, ... names; raises
    LoadFailed."""
    name, _, index = device.partition(".")
    if name != "AXERA" or not (index or "0").isdecimal():
        raise LoadFailed(f"{device} is no Axera device; those are AXERA, AXERA.0, AXERA.1.")
    return int(index or 0)


_held: dict[int, int] = {}  # card -> the file descriptor of its lock


def hold_card(device: str, *, patience: float = 5.0) -> None:
    """Locks the card for this process until it ends; raises LoadFailed while another process has
    it for longer than `patience` seconds, which one that is just ending needs.

    More pipelines on a card bring no throughput, and at the fourth the driver fails for all.
    """
    card = card_index(device)
    if card in _held:
        return
    path = _lock_folder() / f"easel-axera-{card}.lock"
    lock = _open_lock(path)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise LoadFailed(
                    f"Another process already runs a pipeline on {device}; one is all a card "
                    f"takes. Stop it, or use another card. (The lock is {path}.)"
                ) from None
            time.sleep(0.2)
        else:
            _held[card] = lock
            return


def _open_lock(path: Path) -> int:
    try:
        # Without O_CREAT where the file exists: in a folder where all may write (sticky), the
        # kernel refuses to open another user's file with it (fs.protected_regular).
        if path.exists():
            return os.open(path, os.O_RDONLY)
        lock = os.open(path, os.O_RDONLY | os.O_CREAT)
        os.fchmod(lock, 0o644)  # whatever the umask, so that other users' services can open it
    except OSError as error:
        raise LoadFailed(f"The card's lock {path} cannot be opened: {error.strerror}.") from error
    return lock


def _lock_folder() -> Path:
    """/run/lock, which all services of the machine share; where TMPDIR is set, that one."""
    own, shared = os.environ.get("TMPDIR"), Path("/run/lock")
    if own is None and os.access(shared, os.W_OK):
        return shared
    return Path(tempfile.gettempdir())


class Graph:
    """A network compiled for the NPU: called with arrays by the names of its inputs, it returns its
    first output. It has one set of buffers, so it takes one call at a time.
    """

    def __init__(self, part: str, path: Path, device: str) -> None:
        """`part` is what error messages call it; raises LoadFailed."""
        axengine = import_axengine()
        card = card_index(device)
        if card and axengine.get_available_providers()[0] != CARD_PROVIDER:
            raise LoadFailed(f"There is no {device}: the board's own NPU is AXERA.")
        self.part = part
        try:
            self._session: Session = axengine.InferenceSession(
                str(path), provider_options=[{"device_id": card}]
            )
        except (ImportError, *_DRIVER_ERRORS) as error:
            raise LoadFailed(
                f"The {part} ({path.name}) cannot be opened on {device}: {_sentence(error)} "
                "Check the card (`axcl-smi`) and that no other service uses it."
            ) from error
        nodes = self._session.get_inputs()
        self._dtypes = {node.name: np.dtype(node.dtype) for node in nodes}
        self.inputs = {node.name: tuple(node.shape) for node in nodes}
        self.output = tuple(self._session.get_outputs()[0].shape)

    @property
    def input(self) -> str:
        """The name of the first input. Exporters give different names to the input of graphs that
        have only one."""
        return next(iter(self.inputs))

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Raises GenerationFailed where the run fails, or the output holds NaN or infinity."""
        # axengine copies an array's memory without regard to its strides: one that is not
        # C-contiguous would arrive scrambled.
        arrays = {
            name: np.ascontiguousarray(array, dtype=self._dtypes.get(name))
            for name, array in feed.items()
        }
        try:
            answer = self._session.run(None, arrays)[0]
        except _DRIVER_ERRORS as error:
            raise GenerationFailed(
                f"The {self.part} failed on the NPU: {_sentence(error)}"
            ) from error
        if not np.isfinite(answer).all():
            raise GenerationFailed(
                f"The {self.part} answered with values that are no numbers (NaN). Load the model "
                "anew; if it stays, run `python -m app devices --check AXERA`."
            )
        return answer.astype(np.float32, copy=False)


def devices(pci: Path = PCI_DEVICES) -> list[Device]:
    """The Axera devices of this machine, with the reason where one is not available. Imports
    axengine, so it is called in a child process (device_probe.py).

    Cards are counted on the PCI bus, because asking the driver disturbs a running pipeline.
    """
    cards = [
        address.name
        for address in sorted(pci.glob("*"))
        if [(address / key).read_text().strip() for key in ("vendor", "device")] == _PCI_ID
    ]
    names = [f"AXERA.{n}" for n in range(len(cards))] if len(cards) > 1 else ["AXERA"]
    try:
        on_card = import_axengine().get_available_providers()[0] == CARD_PROVIDER
    except LoadFailed as error:
        return [_device(name, "Axera NPU", error.detail) for name in names]
    if not on_card:
        return [_device("AXERA", "Axera NPU of the board")]
    if not cards:
        reason = "The driver is installed, but no Axera card is on the PCI bus. See docs/axera.md."
        return [_device("AXERA", "Axera NPU", reason)]
    found = zip(names, cards, strict=True)
    return [_device(name, f"Axera AX650N at {address}") for name, address in found]


def _device(name: str, full_name: str, reason: str | None = None) -> Device:
    available = reason is None
    return Device(name=name, full_name=full_name, kind="AXERA", available=available, reason=reason)


def _sentence(error: Exception) -> str:
    """An exception's text on one line, cut to 400 characters, with a full stop."""
    text = " ".join(str(error).split())[:400] or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
