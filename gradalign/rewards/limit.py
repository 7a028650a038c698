"""A time limit for a reward function, in whichever thread it runs."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from typing import Any


class OutOfTimeError(BaseException):
    """Not an Exception, so that a reward's own ``except Exception`` does not swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after ``seconds``: by a signal in the main thread, elsewhere by an asynchronous exception.

    The signal also stops regular expressions and sleeps; the exception waits for the next line of Python.
    """

    def out_of_time(*_: Any) -> None:
        raise OutOfTimeError

    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        before = signal.signal(signal.SIGALRM, out_of_time)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:
        thread = ctypes.c_ulong(threading.get_ident())
        interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc
        over, lock = threading.Event(), threading.Lock()

        def fire() -> None:
            with lock:
                if not over.is_set():
                    interrupt(thread, ctypes.py_object(OutOfTimeError))

        timer = threading.Timer(seconds, fire)
        timer.start()
        try:
            yield
        finally:
            with lock:
                over.set()
                interrupt(thread, None)  # one that is on its way would arrive after the block
            timer.cancel()
