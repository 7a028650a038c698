"""Engine ``server``: vLLM, SGLang or another server that answers token ids with token ids and log-probabilities.

At the start every server is asked what it is (``/v1/models``, then ``/version`` or ``/server_info``) and held against
the loaded policy; see `gradalign.rollouts.engine.verified`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradalign.endpoint import PassingError, RefusedError, client, exchange, shown
from gradalign.errors import GradAlignError, missing_extra, nearest, warn
from gradalign.rollouts.engine import Request
from gradalign.rollouts.fleet import KEY, Fleet, NoServerError, Server
from gradalign.rollouts.protocols import Completions, Generate
from gradalign.rollouts.sample import Response

if TYPE_CHECKING:
    import httpx

ASKING = 30.0
"""Seconds that a server may take to say what it is."""


@dataclass
class ServerEngine:
    """Servers of one policy as an engine.

    Attributes:
        fleet: the servers.
        model: as they name it, where it was asked for.
    """

    fleet: Fleet
    model: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """Engines, versions and the model's name; not where the servers are."""
        kinds = {f"{one.spoken.engine} {one.version or ''}".strip() for one in self.fleet.servers}
        return {"name": "server", "servers": sorted(kinds), "model": self.model}

    @property
    def max_length(self) -> int | None:
        """The least that a server takes."""
        return min((one.max_length for one in self.fleet.servers if one.max_length is not None), default=None)

    def respond(self, requests: Sequence[Request]) -> list[Response]:
        """See `gradalign.rollouts.engine.Engine`."""
        try:
            return self.fleet.ask(requests)
        except NoServerError as error:
            raise _none_left(error) from error

    def each(self, requests: Sequence[Request]) -> list[tuple[str, str | None, list[Response]]]:
        """See `gradalign.rollouts.engine.Engine`; a server that does not answer is given up."""
        found, lost = [], []
        for server in [server for server in self.fleet.servers if not server.dead]:
            try:
                found.append((server.root, server.dtype, self.fleet.ask(requests, server)))
            except NoServerError as error:
                lost.append(error)
        if not found:
            raise _none_left(lost[-1]) from lost[-1]
        for one in lost:
            warn(f"{one}: its requests go to the other servers")
        return found

    def load(self, folder: Path) -> None:
        """Have every server take the weights in ``folder``, which it must see under the same name.

        Raises:
            GradAlignError: one does not; its policy would be a stale one.
        """
        for server in self.fleet.servers:
            if server.dead:
                continue
            try:
                answers = self.fleet.post(server, server.spoken.loading(folder.resolve()))
                refused = next((one for one in answers if isinstance(one, dict) and one.get("success") is False), None)
                reason = None if refused is None else f"{server.root} said {shown(refused)}"
            except (PassingError, RefusedError) as error:
                reason = str(error)
            if reason is not None:
                raise GradAlignError(
                    f"{server.root}: its policy is stale, and it does not load the weights in {folder} ({reason}); "
                    f"{server.spoken.how}, or start it again on that folder and give the same command"
                )


def connect(endpoints: Sequence[str], concurrency: int, timeout: float, model: str | None = None) -> ServerEngine:
    """Find out what servers are at ``endpoints``, with the key in the environment's GRADALIGN_SERVER_KEY.

    Args:
        endpoints: addresses such as ``http://127.0.0.1:8000``, with or without ``/v1``.
        concurrency: requests at a time to each, at most.
        timeout: seconds that one request may take.
        model: the name by which it is asked for; None takes the only one a server has.

    Raises:
        GradAlignError: an address that is none, nobody there, no such model, several and none named.
    """
    if importlib.util.find_spec("httpx") is None:
        raise missing_extra("httpx", "server")
    roots = [re.sub(r"(/v1)?/*$", "", address) for address in endpoints]
    for root in roots:
        if not re.match(r"https?://[^/\s]", root):
            raise GradAlignError(f"option --endpoints: {root!r} is no address; write it like http://127.0.0.1:8000/v1")
    secret = os.environ.get(KEY)

    async def all_of_them() -> list[Server | PassingError | RefusedError]:
        async with client(secret, ASKING) as session:
            return await asyncio.gather(*(_introduced(session, root, model) for root in dict.fromkeys(roots)))

    found = asyncio.run(all_of_them())
    there = [one for one in found if isinstance(one, Server)]
    reasons = [str(one) for one in found if not isinstance(one, Server)]
    if not there:
        raise GradAlignError(
            f"option --endpoints: {'; '.join(reasons)}; start the server, and check the address and the key in the "
            f"variable {KEY}"
        )
    for reason in reasons:
        warn(f"option --endpoints: {reason}; going on without it")
    return ServerEngine(Fleet(there, concurrency, timeout, secret), model)


def _none_left(error: NoServerError) -> GradAlignError:
    return GradAlignError(
        f"{error}, and no other server is left; start it again and give the same command: finished rollouts are kept"
    )


async def _introduced(session: httpx.AsyncClient, root: str, model: str | None) -> Server | PassingError | RefusedError:
    """What a server says of itself; why it is not there."""
    try:
        answer = await exchange(session, f"{root}/v1/models", None, ASKING)
    except (PassingError, RefusedError) as error:
        return error
    card = _card(root, answer, model)
    length = card.get("max_model_len")
    owner = str(card.get("owned_by") or "server")
    if owner == "sglang":
        about = await _told(session, f"{root}/server_info") or await _told(session, f"{root}/get_server_info")
        spoken: Completions | Generate = Generate()
        version, dtype = about.get("version"), about.get("dtype")
    else:
        about = await _told(session, f"{root}/server_info?config_format=json")  # in vLLM's development mode alone
        version = (await _told(session, f"{root}/version")).get("version")
        config = about.get("vllm_config")
        config = config.get("model_config") if isinstance(config, dict) else None
        dtype = config.get("dtype") if isinstance(config, dict) else None
        spoken = Completions(str(card["id"]), owner)
    kind = dtype.removeprefix("torch.") if isinstance(dtype, str) and dtype != "auto" else None
    return Server(
        root, spoken, version if isinstance(version, str) else None, kind, length if isinstance(length, int) else None
    )


def _card(root: str, answer: Any, model: str | None) -> dict[str, Any]:
    """What ``/v1/models`` says of the model.

    Raises:
        GradAlignError: it is not there, or one of several and none was named.
    """
    listed = answer.get("data") if isinstance(answer, dict) else None
    cards = [one for one in listed or [] if isinstance(one, dict) and isinstance(one.get("id"), str)]
    names = [card["id"] for card in cards]
    if not cards:
        raise GradAlignError(
            f"{root}: lists no model ({shown(answer)}); give the address of an OpenAI-compatible server"
        )
    if model is None and len(cards) > 1:
        raise GradAlignError(f"{root}: serves {', '.join(names)}; say which by --served-model")
    if model is not None and model not in names:
        raise GradAlignError(f"option --served-model: {root} serves no {model!r}{nearest(model, names)}")
    return cards[0] if model is None else cards[names.index(model)]


async def _told(session: httpx.AsyncClient, address: str) -> dict[str, Any]:
    """What a server says there; nothing where it does not."""
    try:
        answer = await exchange(session, address, None, ASKING)
    except (PassingError, RefusedError):
        return {}
    return answer if isinstance(answer, dict) else {}
