"""Asking a judge: requests side by side, repeated with growing waits, verdicts read strictly; see `judge`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 0.5, 60.0, 600.0
"""Seconds before the first repetition, before any, and before one whose time the server names."""
PASSING = (408, 409, 425, 429)
"""Statuses that a later request may not meet, as well as all from 500 on."""
OWN = (400, 413, 422)
"""Statuses that say something of the one request: it is too long for the judge, or what it asks about is barred."""
_SAID = re.compile(r"(?:(?:final\s+)?(?:verdict|answer|judge?ment)\W{1,6})?(yes|no)", re.IGNORECASE)

Done = Callable[[str, float, str], None]


class FailedJudgementError(Exception):
    """No verdict, however often the judge was asked."""


class RefusedError(Exception):
    """The judge does not take the request, and never will; with ``own`` it may still take others."""

    def __init__(self, message: str, own: bool = False) -> None:
        super().__init__(message)
        self.own = own


class _PassingError(Exception):
    """What another try may mend; ``wait`` is the server's wish in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


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
    import httpx

    failed: dict[str, str] = {}
    slots = asyncio.Semaphore(concurrency)
    headers = {} if not secret else {"Authorization": f"Bearer {secret}"}

    async def one(client: httpx.AsyncClient, name: str, body: dict[str, Any]) -> None:
        for tried in range(retries + 1):
            try:
                async with slots:
                    reply = await _reply(client, address, body, timeout)
                done(name, verdict(reply), reply)
                return
            except RefusedError as error:
                if stop or not error.own:
                    raise
                failed[name] = str(error)
                return
            except _PassingError as error:
                if tried < retries:
                    growing = min(LONGEST_WAIT, FIRST_WAIT * 2**tried) * random.uniform(0.5, 1.5)
                    await asyncio.sleep(growing if error.wait is None else min(error.wait, LONGEST_ASKED))
                    continue
                reason = f"{error}, tried {retries + 1} times"
                if stop:
                    raise FailedJudgementError(reason) from error
                failed[name] = reason

    async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None)) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for name, body in requests.items():
                    group.create_task(one(client, name, body))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    return failed


async def _reply(client: httpx.AsyncClient, address: str, body: dict[str, Any], timeout: float) -> str:
    import httpx

    try:
        async with asyncio.timeout(timeout):  # httpx limits the wait for each piece, not for the whole
            response = await client.post(address, json=body)
    except (httpx.TimeoutException, TimeoutError) as error:
        raise _PassingError(f"{address} gave no answer within {timeout:g} s") from error
    except httpx.RequestError as error:
        raise _PassingError(f"{address} cannot be reached ({error or type(error).__name__})") from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise RefusedError(f"{address} is no address ({error})") from error
    said = " ".join(response.text.split())[:120]
    if response.status_code in PASSING or response.status_code >= 500:
        raise _PassingError(f"{address} answered {response.status_code} ({said})", _wish(response))
    if response.status_code != 200:
        raise RefusedError(f"{address} answered {response.status_code} ({said})", response.status_code in OWN)
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise _PassingError(f"{address} gave no chat completion ({said})") from error
    if not isinstance(content, str):
        raise _PassingError(f"{address} gave a chat completion without text ({said})")
    return content


def _wish(response: httpx.Response) -> float | None:
    """Seconds that the server's Retry-After asks to wait for."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        until = parsedate_to_datetime(text)
        until = until.replace(tzinfo=UTC) if until.tzinfo is None else until
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    return None


def verdict(reply: str) -> float:
    """The score that a judge's reply gives, in [0, 1].

    Raises:
        _PassingError: it gives none.
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
        raise _PassingError(f"the judge said neither YES nor NO nor a score ({shown[-80:] or 'nothing'})")
    return float(said[1].lower() == "yes")
