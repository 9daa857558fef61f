"""The worker's end of the socket pair to the service: orders in, reports out. Knows no pipeline."""

import os
import queue
import socket
import sys
import threading
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from app.runtime.attempt import Attempt
from app.workers.message import LENGTH, Cancel, Load, Order, Run, Watch, pack, read_order


class Channel:
    """Orders are read on a thread of their own, so that a cancel reaches a job that is being drawn.

    When the service closes its end, that thread ends the whole process at once: no worker outlives
    its service, even where the main thread is deep inside a native call.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._incoming = connection.makefile("rb")
        self._sending = threading.Lock()  # the main thread, the encoder and the reader all send
        self._load: queue.SimpleQueue[Load] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        # Weak: an attempt that has ended drops out, and orders that still come for it are ignored.
        self._attempts = WeakValueDictionary[str, Attempt]()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: Any) -> None:
        with self._sending:
            self._connection.sendall(pack(message))

    def wait_for_load(self) -> Load:
        """What to load: the service's first order."""
        return self._load.get()

    def wait_for_job(self) -> Attempt:
        """The next job in the order of their arrival."""
        return self._jobs.get()

    def _listen(self) -> None:
        code = 0
        try:
            while (order := self._read()) is not None:
                self._follow(order)
        except OSError:
            pass  # the service died with reports unread, or while one was sent to it
        except msgspec.DecodeError as error:
            code = 1
            print(f"an order from the service cannot be read: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def _read(self) -> Order | None:
        """The next order; None when the service has closed its end."""
        head = self._incoming.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return None
        length: int = LENGTH.unpack(head)[0]
        body = self._incoming.read(length)
        return read_order(body) if len(body) == length else None

    def _follow(self, order: Order) -> None:
        match order:
            case Load():
                self._load.put(order)
            case Run():
                attempt = self._attempts[order.job] = Attempt(order, self.send)
                self._jobs.put(attempt)
            case Cancel():
                if attempt := self._attempts.get(order.job):
                    attempt.canceled = True
            case Watch():
                if attempt := self._attempts.get(order.job):
                    attempt.watch()
