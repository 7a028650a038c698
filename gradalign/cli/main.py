"""``gradalign COMMAND ...``: finds the command, turns errors into one line and exit status 2."""

from __future__ import annotations

import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from gradalign import __version__
from gradalign.errors import GradAlignError, GradAlignWarning, nearest

COMMANDS = {
    "demo": "the main job, end to end, on the embedded default: minutes, no download",
    "pool": "what is in a pool: its problems, sources, repeats, rows that cannot be used",
    "rollout": "sample and reward responses to problems",
    "score": "align rollouts that exist with a validation set's policy gradient",
    "select": "sample, score and choose: which problems to train on now",
    "plan": "what a recipe will cost before it starts: time, memory, device hours, and its alternatives",
    "train": "TRL's GRPO on problems chosen as the policy moves",
    "verl": "verl's trainer in rounds, on problems chosen as the policy moves",
    "audit": "problems whose reward is probably wrong, at a false-discovery rate",
    "reward": "what a reward accepts and rejects, how long it takes",
    "report": "one page to look at: what runs chose, why, and what came of it",
    "bench": "speed, fidelity, noise, audit, regimes: how far numbers can be trusted, what choosing is worth",
}
"""Command -> one line of help; the module of the same name has ``run(arguments)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status: 0, 2 after a mistake that the user can mend, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    prefix = f"gradalign {arguments[0]}" if arguments and arguments[0] in COMMANDS else "gradalign"

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        print(f"{prefix}: warning: {message}", file=sys.stderr)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the characters gets the table all the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries talk to developers; ours are for the user
        warnings.simplefilter("always", GradAlignWarning)
        warnings.showwarning = show
        try:
            _run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has left
            _drop_output()
            return 1
        except KeyboardInterrupt:
            print(f"{prefix}: interrupted; finished rollouts are kept, the same command uses them", file=sys.stderr)
            return 130
        except (GradAlignError, OSError, MemoryError, RuntimeError) as error:
            line = _mendable(error)
            if line is None:
                raise
            if isinstance(error, OSError) and error.filename is None:
                _drop_output()
            print(f"{prefix}: error: {line}", file=sys.stderr)
            return 2
    return 0


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
    elif arguments[0] == "--version":
        print(f"gradalign {__version__}")
    elif arguments[0] in COMMANDS:
        # Waiting threads that spin starve small tensors of the few cores a laptop has; read when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        importlib.import_module(f"gradalign.cli.{arguments[0]}").run(arguments[1:])
    else:
        raise GradAlignError(f"unknown command {arguments[0]!r}{nearest(arguments[0], COMMANDS)}")


def _mendable(error: BaseException) -> str | None:
    """One line for an error that is the user's or the machine's to mend; None for a bug, which keeps its traceback."""
    if isinstance(error, GradAlignError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror or error}; check the name, the rights and the space"
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "out of memory; lower --batch-tokens or --batch-rollouts"
    return None


def _drop_output() -> None:
    """Send what is still to be printed nowhere, so that the interpreter's last flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  gradalign {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    question = "Which problems should this policy train on now?"
    return "\n".join([question, "", *lines, "", "gradalign COMMAND --help tells its options."])


if __name__ == "__main__":
    sys.exit(main())
