"""Asking a judge: requests side by side, repeated with growing waits, verdicts read strictly; see `judge`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gradalign.endpoint import PassingError, RefusedError, client, exchange, pause, shown

if TYPE_CHECKING:
    import httpx

_SAID = re.compile(r"(?:(?:final\s+)?(?:verdict|answer|judge?ment)\W{1,6})?(yes|no)", re.IGNORECASE)

Done = Callable[[str, float, str], None]


class FailedJudgementError(Exception):
    """No verdict, however often the judge was asked."""


async def ask(
    address: str, requests: Mapping[str, dict[str, Any]], secret: str | None, concurrency: int, retries: int,
    timeout: float, done: Done, stop: bool,
) -> dict[str, str]:  # fmt: skip
    """Ask for a verdict on each of the named requests.

    Args:
        address: to post to.
        requests: name -> JSON body.
        secret: the endpoint's key, None for none.
        concurrency: requests at a time, at most.
        retries: further tries of each.
        timeout: seconds of one try.
        done: gets name, score and reply of each verdict as it is in.
        stop: raise at the first that fails; else go on with the others.

    Returns:
        Name -> reason of those that failed.

    Raises:
        FailedJudgementError: one failed, with ``stop``.
        RefusedError: the judge does not take a request, and without ``stop`` would not take others either.
    """
    failed: dict[str, str] = {}
    slots = asyncio.Semaphore(concurrency)

    async def one(session: httpx.AsyncClient, name: str, body: dict[str, Any]) -> None:
        for tried in range(retries + 1):
            try:
                async with slots:
                    reply = await _reply(session, address, body, timeout)
                done(name, verdict(reply), reply)
                return
            except RefusedError as error:
                if stop or not error.own:
                    raise
                failed[name] = str(error)
                return
            except PassingError as error:
                if tried < retries:
                    await asyncio.sleep(pause(error, tried))
                    continue
                reason = f"{error}, tried {retries + 1} times"
                if stop:
                    raise FailedJudgementError(reason) from error
                failed[name] = reason

    async with client(secret, timeout) as session:
        try:
            async with asyncio.TaskGroup() as group:
                for name, body in requests.items():
                    group.create_task(one(session, name, body))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    return failed


async def _reply(session: httpx.AsyncClient, address: str, body: dict[str, Any], timeout: float) -> str:
    answer = await exchange(session, address, body, timeout)
    try:
        content = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError) as error:
        raise PassingError(f"{address} gave no chat completion ({shown(answer)})") from error
    if not isinstance(content, str):
        raise PassingError(f"{address} gave a chat completion without text ({shown(answer)})")
    return content


def verdict(reply: str) -> float:
    """The score that a judge's reply gives, in [0, 1].

    Raises:
        PassingError: it gives none.
    """
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    pieces = reply.split("```")
    fenced = [pieces[-2].removeprefix("json")] if len(pieces) > 2 and not pieces[-1].strip() else []
    for text in [reply, *fenced, *lines[-1:]]:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(text)
            score = found.get("score") if isinstance(found, dict) else None
            if isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1:
                return float(score)
    said = _SAID.fullmatch(lines[-1].strip("*_`\"'.! ")) if lines else None
    if said is None:
        shown = " ".join(reply.split())
        raise PassingError(f"the judge said neither YES nor NO nor a score ({shown[-80:] or 'nothing'})")
    return float(said[1].lower() == "yes")
