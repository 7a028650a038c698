"""Several servers of one policy asked at once: bounded, repeated with growing waits, going on without those that die.

A server that fails rests, longer each time; its requests go to the others. One that fails `TRIES` times in a row, with
nothing answered in between, is given up. The run ends when none is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradalign.endpoint import PassingError, RefusedError, client, exchange, pause
from gradalign.errors import GradAlignError, warn
from gradalign.rollouts.engine import Request
from gradalign.rollouts.protocols import Spoken, UnfitError
from gradalign.rollouts.sample import Response

if TYPE_CHECKING:
    import httpx

TRIES = 6
"""Failures in a row after which a server is given up: about 16 seconds where it cannot be reached."""
KEY = "GRADALIGN_SERVER_KEY"
"""Environment variable with the servers' key."""


class NoServerError(Exception):
    """All servers that were to be asked are given up."""


@dataclass
class Server:
    """One server, and how it has been doing.

    Attributes:
        root: its address, without ``/v1``.
        spoken: what it speaks.
        version: of its engine, where it tells.
        dtype: type of its weights, where it tells.
        max_length: longest prompt and response together in tokens, where it tells.
        dead: given up.
        failures: in a row.
        failed_at: when the last one was noted.
        rests_until: when it may be asked again; both in seconds of `time.monotonic`.
    """

    root: str
    spoken: Spoken
    version: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    dead: bool = False
    failures: int = 0
    failed_at: float = 0.0
    rests_until: float = 0.0

    def fail(self, error: PassingError, asked_at: float) -> bool:
        """Note a failure, unless it was under way at the last one and tells nothing new; true when it was the end."""
        if asked_at < self.failed_at:
            return False
        self.failed_at = time.monotonic()
        self.rests_until = self.failed_at + pause(error, self.failures)
        self.failures += 1
        self.dead = self.failures >= TRIES
        return self.dead


@dataclass
class Fleet:
    """Servers of one policy.

    Attributes:
        servers: those that were there at the start.
        concurrency: requests at a time to each, at most.
        timeout: seconds that one request may take.
        secret: their key, None for none.
    """

    servers: Sequence[Server]
    concurrency: int
    timeout: float
    secret: str | None = field(repr=False)

    def ask(self, requests: Sequence[Request], only: Server | None = None) -> list[Response]:
        """A response to each request, from any server or from ``only`` one.

        Raises:
            NoServerError: none is left.
            GradAlignError: one refuses a request, or its answers cannot be used.
        """
        return asyncio.run(self._ask(requests, [server for server in self.servers if only in (None, server)]))

    async def _ask(self, requests: Sequence[Request], servers: Sequence[Server]) -> list[Response]:
        found: list[Response | None] = [None] * len(requests)
        waiting: asyncio.Queue[tuple[int, int]] = asyncio.Queue()  # (request, times it has failed)
        for number in range(len(requests)):
            waiting.put_nowait((number, 0))

        async def work(session: httpx.AsyncClient, server: Server) -> None:
            while not server.dead:
                number, failed = await waiting.get()
                rest = server.rests_until - time.monotonic()
                if server.dead or rest > 0:
                    waiting.put_nowait((number, failed))
                    waiting.task_done()
                    await asyncio.sleep(max(rest, 0))
                    continue
                asked_at = time.monotonic()
                try:
                    found[number] = await self._one(session, server, requests[number])
                    server.failures = 0
                except PassingError as error:
                    _go_on(server, servers, error, server.fail(error, asked_at))
                    failed += not error.busy
                    if failed >= TRIES * len(servers):
                        where = f"problem {requests[number].key!r}"
                        raise GradAlignError(f"{where}: {error}, tried {failed} times; mend the server") from error
                    waiting.put_nowait((number, failed))
                waiting.task_done()

        async with client(self.secret, self.timeout) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    alive = [server for server in servers if not server.dead]
                    count = min(self.concurrency, len(requests))
                    workers = [group.create_task(work(session, one)) for one in alive for _ in range(count)]
                    await waiting.join()
                    for worker in workers:
                        worker.cancel()
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
        return [response for response in found if response is not None]

    async def _one(self, session: httpx.AsyncClient, server: Server, request: Request) -> Response:
        address = server.root + server.spoken.path
        try:
            answer = await exchange(session, address, server.spoken.body(request), self.timeout)
            return server.spoken.read(answer, request)
        except PassingError as error:
            if error.args[0].startswith(address):
                raise
            raise PassingError(f"{address} {error}", error.wait, error.busy) from error
        except UnfitError as error:
            raise GradAlignError(f"{address} {error}") from error
        except RefusedError as error:
            mend = (
                "serve the policy's own model, or shorten the prompt or --max-new-tokens"
                if error.own
                else f"check the address, what it serves, and the key in the variable {KEY}"
            )
            raise GradAlignError(f"problem {request.key!r}: {error}; {mend}") from error

    def post(self, server: Server, steps: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Answers to JSON bodies posted one after the other to paths of one server.

        Raises:
            PassingError: no answer.
            RefusedError: it does not take one.
        """

        async def all_of_them() -> list[Any]:
            async with client(self.secret, self.timeout) as session:
                return [await exchange(session, server.root + path, body, self.timeout) for path, body in steps]

        return asyncio.run(all_of_them())


def _go_on(server: Server, servers: Sequence[Server], error: PassingError, died: bool) -> None:
    """Say that a server has died, once.

    Raises:
        NoServerError: it was the last.
    """
    said = f"{error}, tried {server.failures} times"
    if all(one.dead for one in servers):
        raise NoServerError(said) from error
    if died:
        warn(f"{said}: its requests go to the other servers")
