"""Asking an HTTP endpoint for JSON: what may pass told apart from what will not, and how long to wait in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 0.5, 60.0, 600.0
"""Seconds before the first repetition, before any, and before one whose time the server names."""
PASSING = (408, 409, 425, 429)
"""Statuses that a later request may not meet, as well as all from 500 on."""
BUSY = (429, 503)
"""Statuses that say nothing of the request: the server has too much to do."""
OWN = (400, 413, 422)
"""Statuses that say something of the one request: it is too long for the model, or what it asks about is barred."""


class RefusedError(Exception):
    """The endpoint does not take the request, and never will; with ``own`` it may still take others."""

    def __init__(self, message: str, own: bool = False) -> None:
        super().__init__(message)
        self.own = own


class PassingError(Exception):
    """What another try may mend; ``wait`` is the server's wish in seconds, ``busy`` that it has too much to do."""

    def __init__(self, message: str, wait: float | None = None, busy: bool = False) -> None:
        super().__init__(message)
        self.wait, self.busy = wait, busy


def client(secret: str | None, timeout: float) -> httpx.AsyncClient:
    """A client that sends ``secret`` (None for none) as the endpoint's key, with as many connections as are asked."""
    import httpx

    headers = {} if not secret else {"Authorization": f"Bearer {secret}"}
    return httpx.AsyncClient(headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None))


async def exchange(client: httpx.AsyncClient, address: str, body: Any, timeout: float) -> Any:
    """Post ``body`` as JSON, or get where it is None; give the JSON value that comes back, None for an empty answer.

    Raises:
        PassingError: no connection, no answer within ``timeout`` seconds, a busy or failing server, no JSON.
        RefusedError: any other status than 200, or an address that is none.
    """
    import httpx

    try:
        async with asyncio.timeout(timeout):  # httpx limits the wait for each piece, not for the whole
            response = await (client.get(address) if body is None else client.post(address, json=body))
    except (httpx.TimeoutException, TimeoutError) as error:
        raise PassingError(f"{address} gave no answer within {timeout:g} s") from error
    except httpx.RequestError as error:
        raise PassingError(f"{address} cannot be reached ({error or type(error).__name__})") from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise RefusedError(f"{address} is no address ({error})") from error
    said = " ".join(response.text.split())[:120]
    if response.status_code in PASSING or response.status_code >= 500:
        busy = response.status_code in BUSY
        raise PassingError(f"{address} answered {response.status_code} ({said})", _wish(response), busy)
    if response.status_code != 200:
        raise RefusedError(f"{address} answered {response.status_code} ({said})", response.status_code in OWN)
    try:
        return response.json() if response.content else None
    except (ValueError, RecursionError) as error:
        raise PassingError(f"{address} gave no JSON ({said})") from error


def shown(answer: Any) -> str:
    """The beginning of an answer, for a message."""
    return json.dumps(answer)[:120]


def pause(error: PassingError, tried: int) -> float:
    """Seconds to wait before the next try, ``tried`` failed ones (from 0) after the first."""
    growing = min(LONGEST_WAIT, FIRST_WAIT * 2**tried) * random.uniform(0.5, 1.5)
    return growing if error.wait is None else min(error.wait, LONGEST_ASKED)


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
