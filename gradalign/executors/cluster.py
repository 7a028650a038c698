"""A Ray cluster: joined, or started on this machine; and how many workers it has room for."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gradalign.errors import GradAlignError, missing_extra

ANSWER = 10.0
"""Seconds in which a cluster's port must answer."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2 begins, and so of gRPC, which a head speaks: preface and empty settings (RFC 9113, 3.4)."""
SETTINGS = 4
"""The type, in its fourth byte, of the frame that a server begins with."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a worker takes.

    Attributes:
        cpus: of a machine, reserved by Ray, and threads of torch.
        gpus: a part of one, or several; None takes one where the cluster has some and the policy may use them.
    """

    cpus: int = 1
    gpus: float | None = None


def ray_package() -> Any:
    """The package ray.

    Raises:
        GradAlignError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    return ray


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Inside, ray is connected; yields the package.

    Args:
        address: ``auto`` for the cluster that this machine is a node of, ``HOST:PORT`` of a head; None starts Ray on
            this machine alone, and stops it at the end. A connection that exists already is taken as it is, and kept.

    Raises:
        GradAlignError: ray is not installed, or does not answer there.
    """
    ray = ray_package()
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address not in (None, "auto"):
        _reach(address)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        where = "Ray cannot be started here" if address is None else f"no Ray cluster answers at {address!r}"
        raise GradAlignError(
            f"option --ray-address: {where} ({said}); see `ray status`, set RAY_AUTH_MODE=token "
            "where the cluster has a token, or leave the option out to start Ray on this machine"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Refuse an address where no head listens: ray itself waits for minutes, and says it in many lines."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise GradAlignError(f"option --ray-address: {address!r}: write auto, or HOST:PORT of the head (port 6379)")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(HELLO)
                if connection.recv(4, socket.MSG_WAITALL)[3:] != bytes([SETTINGS]):
                    raise OSError("another program is at this port")
    except (OSError, OverflowError) as error:
        raise GradAlignError(
            f"option --ray-address: no Ray head answers at {address} ({error}); start one by `ray start --head`, or "
            "leave the option out to start Ray on this machine"
        ) from error


def room(ray: Any, needs: Needs, device: str) -> tuple[int, Needs]:
    """How many workers the cluster's machines hold, and what each takes.

    Raises:
        GradAlignError: not a single one.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = needs.gpus
    if gpus is None:
        gpus = 1.0 if device.startswith(("auto", "cuda")) and any(own.get("GPU") for own in machines) else 0.0
    found = Needs(needs.cpus, gpus)
    count = sum(
        int(min(own.get("CPU", 0) / found.cpus, own.get("GPU", 0) / gpus + 1e-9 if gpus else float("inf")))
        for own in machines
    )
    if not count:
        most = max((own.get("CPU", 0) for own in machines), default=0)
        cards = max((own.get("GPU", 0) for own in machines), default=0)
        raise GradAlignError(
            f"option --worker-cpus: no machine of the cluster has room for a worker of {found.cpus} CPUs and {gpus:g} "
            f"GPUs (the largest has {most:g} and {cards:g}); lower --worker-cpus or --worker-gpus"
        )
    return count, found
