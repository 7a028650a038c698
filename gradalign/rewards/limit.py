"""A time limit for a reward function, in whichever thread it runs."""

from __future__ import annotations

import contextvars
import ctypes
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class OutOfTimeError(SystemExit):
    """Not an Exception, so that a reward's own ``except Exception`` does not swallow it; ends a thread in silence."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """What ``work`` gives; it is interrupted after ``seconds``.

    In the main thread by a signal, which also stops regular expressions and sleeps. Elsewhere ``work`` runs in a thread
    of its own, which ends at its next line of Python and is not waited for.

    Raises:
        OutOfTimeError: it takes longer.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _by_signal(seconds, work)
    return _by_thread(seconds, work)


def _by_signal(seconds: float, work: Callable[[], T]) -> T:
    def out_of_time(*_: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _by_thread(seconds: float, work: Callable[[], T]) -> T:
    # Never interrupt the caller's own thread: an interruption cannot be taken back (in CPython 3.11 a mark of it stays,
    # and threads may hand each other the interpreter for ever), and it may strike after the work.
    values: list[T] = []
    errors: list[BaseException] = []
    lock, ended = threading.Lock(), threading.Event()

    def run() -> None:
        try:
            values.append(work())
        except BaseException as error:
            errors.append(error)
        with lock:
            ended.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    if not ended.wait(seconds):
        with lock:  # it cannot end meanwhile, nor its number be another thread's
            if not ended.is_set():
                number = ctypes.c_ulong(thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(OutOfTimeError))
                raise OutOfTimeError
    if errors:
        raise errors[0]
    return values[0]
