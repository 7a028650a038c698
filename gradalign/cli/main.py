"""``gradalign COMMAND ...``: finds the command, turns errors into one line and exit status 2."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from gradalign import __version__
from gradalign.errors import GradAlignError, GradAlignWarning, nearest

COMMANDS = {
    "demo": "the main job, end to end, on the embedded default: minutes, no download",
    "rollout": "sample and reward responses to problems",
    "score": "align rollouts that exist with a validation set's policy gradient",
    "select": "sample, score and choose: which problems to train on now",
}
"""Command -> one line of help; the module of the same name has ``run(arguments)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status: 0, or 2 after a mistake that the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"gradalign {__version__}")
        return 0
    command = arguments[0]
    # Waiting threads that spin starve small tensors of the few cores a laptop has; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prefix = "gradalign" if command not in COMMANDS else f"gradalign {command}"

    def show(message: Warning | str, category: type[Warning], *place: object) -> None:
        print(f"{prefix}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries talk to developers; ours are for the user
        warnings.simplefilter("always", GradAlignWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        try:
            if command not in COMMANDS:
                raise GradAlignError(f"unknown command {command!r}{nearest(command, COMMANDS)}")
            importlib.import_module(f"gradalign.cli.{command}").run(arguments[1:])
        except GradAlignError as error:
            print(f"{prefix}: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{prefix}: interrupted; the same command goes on where it stopped", file=sys.stderr)
            return 130
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  gradalign {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    question = "Which problems should this policy train on now?"
    return "\n".join([question, "", *lines, "", "gradalign COMMAND --help tells its options."])


if __name__ == "__main__":
    sys.exit(main())
