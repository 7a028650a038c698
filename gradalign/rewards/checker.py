"""Checks of untrusted text in a process of its own, which is killed when it takes too long.

Symbolic mathematics can hang, in C where no exception reaches it, and fill the memory; both kill a checking process and
not the run. It answers one check after the other over pipes, stays for the next ones, and is replaced after a kill. Any
thread may ask: each takes an idle process, or starts one. Nothing of the calling process is copied into it (no fork, no
``__main__`` run again).

Some libraries evaluate the text as Python. So the process may not write to files, start others, or reach the network,
and has `MEMORY` bytes: a fence that stops mistakes and what a policy stumbles upon, not a determined attacker.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from gradalign.errors import GradAlignError

MEMORY = 2 << 30
"""Bytes of address space that a checking process may have, where the system limits them."""
START = 120.0
"""Seconds that a checking process may take to start and import what it needs."""
_FORBIDDEN = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pty.", "urllib.", "ftplib.", "smtplib.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from gradalign.rewards.checker import serve; serve()"

_idle: list[Checker] = []
_lock = threading.Lock()


class NoVerdictError(Exception):
    """The check took too long, or ended its process (too much memory or recursion)."""


class Checker:
    """One checking process.

    Args:
        module: whose functions it calls; its ``prepare()`` imports what they need, before the fence is up.

    Raises:
        GradAlignError: it cannot be started.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CODE, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=os.environ | one,
        )  # fmt: skip
        self.replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._ask({"import": module}, START)
        except BaseException as error:
            self.stop()
            if isinstance(error, NoVerdictError):
                raise GradAlignError(f"a process to check responses in cannot be started ({error})") from error
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.replies.put(line)
        self.replies.put(b"")

    def ask(self, name: str, arguments: tuple[Any, ...], seconds: float) -> Any:
        """See `check`."""
        return self._ask({"function": name, "arguments": arguments, "seconds": seconds}, seconds)

    def _ask(self, request: dict[str, Any], seconds: float) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply = self.replies.get(timeout=seconds)
        except (OSError, queue.Empty) as error:
            raise NoVerdictError(f"no verdict within {seconds:g} s") from error
        if not reply:
            raise NoVerdictError("the check ended its process")
        answer = json.loads(reply)
        if "error" in answer:
            raise GradAlignError(answer["error"])
        return answer["value"]

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError, ValueError):
                assert pipe is not None
                pipe.close()


def check(function: str, *arguments: Any, seconds: float) -> Any:
    """What ``function`` returns in a checking process.

    Args:
        function: ``pkg.module:name``; see `Checker`.
        arguments: JSON values; the returned value is one too.
        seconds: that it may take.

    Raises:
        NoVerdictError: it takes longer, or ends its process.
        GradAlignError: it raises one; or the module cannot be imported.
    """
    module, _, name = function.partition(":")
    with _lock:
        mine = [checker for checker in _idle if (checker.owner, checker.module) == (os.getpid(), module)]
        for idle in mine:
            _idle.remove(idle)
        alive = [idle for idle in mine if idle.process.poll() is None]
        checker = alive.pop() if alive else None
        _idle.extend(alive)
    checker = checker or Checker(module)
    try:
        value = checker.ask(name, arguments, seconds)
    except GradAlignError:  # it has answered, and is as good as new
        _give_back(checker)
        raise
    except BaseException:
        checker.stop()
        raise
    _give_back(checker)
    return value


def _give_back(checker: Checker) -> None:
    with _lock:
        _idle.append(checker)


@atexit.register
def stop_all() -> None:
    """Kill the idle checking processes of this process."""
    with _lock:
        for checker in _idle:
            if checker.owner == os.getpid():
                checker.stop()
        _idle.clear()


def serve() -> None:
    """Answer requests on standard input until it ends: what a checking process does."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is not for the caller
    module: Any = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if module is None:
                module = importlib.import_module(request["import"])
                module.prepare()
                _fence()
                answer = {"value": None}
            else:
                answer = {"value": _answer(getattr(module, request["function"]), request)}
        except GradAlignError as error:
            answer = {"error": str(error)}
        except ImportError as error:
            answer = {"error": f"the checking process cannot import what it needs ({error}); install it anew"}
        replies.write(json.dumps(answer).encode() + b"\n")
        replies.flush()


def _answer(function: Callable[..., Any], request: dict[str, Any]) -> Any:
    if hasattr(signal, "alarm"):  # outlives nobody, also where the caller was killed
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(request["seconds"]) + 2)
    try:
        return function(*request["arguments"])
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _fence() -> None:
    """Give up what a check has no need of; see the module's text."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            hard = resource.getrlimit(kind)[1]
            most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (most, most))

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        forbidden = event.startswith(_FORBIDDEN) and event not in _HARMLESS
        if forbidden or (
            event == "open" and isinstance(arguments[1], str) and not set("wax+").isdisjoint(arguments[1])
        ):
            raise PermissionError(f"{event} is not a check's business")

    sys.addaudithook(refuse)
