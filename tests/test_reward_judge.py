"""Reward ``judge`` against a real HTTP server on the loopback: verdicts, failures, waits, concurrency, cache."""

from __future__ import annotations

import json
import math
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from gradalign.endpoint import PassingError
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward
from gradalign.rewards.find import find_reward
from gradalign.rewards.judge import Judge
from gradalign.rewards.judge_client import verdict
from gradalign.rewards.several import WeightedSum
from tests.http_server import QuietServer

PROBLEM = Problem("k7", "What is 2 + 2?", "4", "s")
Answer = tuple[int, dict[str, str], str]
"""Status, headers, and the judge's text or, for another status than 200, the body."""


class Server:
    """An endpoint whose answers ``behave`` decides by the number of the request and what was asked."""

    def __init__(self) -> None:
        self.behave: Callable[[int, str], Answer] = lambda number, asked: (200, {}, "YES" if "4" in asked else "NO")
        self.delay = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.now = self.most = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.times.append(time.monotonic())
                    number = len(outer.bodies)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                time.sleep(outer.delay)
                status, headers, text = outer.behave(number, body["messages"][0]["content"])
                with lock:
                    outer.now -= 1
                if self.path != "/v1/chat/completions":
                    status, text = 404, "no such place"
                reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
                sent = (reply if status == 200 else text).encode()
                try:
                    self.send_response(status)
                    for name, value in {"content-length": str(len(sent)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(sent)
                except OSError:
                    pass  # who asked has left

            def log_message(self, *_: Any) -> None:
                """Silent."""

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("gradalign.endpoint.FIRST_WAIT", 0.05)
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


TEMPLATE = "Q {question} A {answer} R {response}"


def pay(judge: Judge, *responses: str) -> list[float]:
    return Reward("judge", judge)(PROBLEM, list(responses), [[]] * len(responses))


def test_verdicts_are_read_strictly() -> None:
    for reply, score in {
        "YES": 1, "no.": 0, "It is the same.\n**YES**": 1, "Verdict: NO": 0, "Final answer: **yes**.": 1,
        '{"score": 0.25}': 0.25, 'I think so.\n{"score": 1, "why": "same"}': 1, '```json\n{"score": 0.5}\n```': 0.5,
        '{\n "score": 0\n}': 0, 'Like ```x``` or\n``` {"score": 1} ``` \n': 1,
    }.items():  # fmt: skip
        assert verdict(reply) == score, reply
    for reply in (
        "", "YES or NO", "YES\nbut not quite", "maybe", '{"score": 2}', '{"score": "1"}', '{"score": true}', "no idea",
        '{"score": NaN}', '{"grade": 1}', "[1]", "[" * 100_000, "YESNO", "5", '{"score": -0.1}',
        "```" + " " * 100_000, "```json" * 20_000, '```{"score": 1}``` or ```', '{"score": 1}```',
    ):  # fmt: skip
        with pytest.raises(PassingError, match="neither YES nor NO nor a score"):
            verdict(reply)


def test_it_asks_once_for_each_response_and_sends_the_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    server.behave = lambda number, asked: (200, {}, "YES" if asked.endswith("R 4") else "NO")
    judge = Judge(server.url, "m", TEMPLATE, key="MY_KEY")
    assert pay(judge, "4", "5", "4", "{answer} {response}") == [1.0, 0.0, 1.0, 0.0]
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert sorted(asked) == [
        "Q What is 2 + 2? A 4 R 4", "Q What is 2 + 2? A 4 R 5", "Q What is 2 + 2? A 4 R {answer} {response}"
    ]  # fmt: skip
    assert {(body["model"], body["temperature"]) for body in server.bodies} == {("m", 0)}
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}
    pay(Judge(server.url, "m"), "4")
    assert "authorization" not in server.headers[-1]
    assert "4\n</reference_answer>" in server.bodies[-1]["messages"][0]["content"]


def test_requests_run_side_by_side_but_not_more_than_asked(server: Server) -> None:
    server.delay = 0.15
    assert pay(Judge(server.url, "m", TEMPLATE, concurrency=3), *map(str, range(9))).count(1.0) == 9
    assert (server.most, len(server.bodies)) == (3, 9)


def test_it_goes_on_after_failures_that_pass(server: Server) -> None:
    answers: dict[int, Answer] = {
        1: (500, {}, "sorry"), 2: (429, {"retry-after": "1"}, "slow down"), 3: (200, {}, "hm"),
        4: (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, ""), 5: (200, {}, "YES"),
    }  # fmt: skip
    server.behave = lambda number, asked: answers[number]
    assert pay(Judge(server.url, "m", TEMPLATE), "4") == [1.0]
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert len(waits) == 4
    assert waits[0] >= 0.02
    assert 1.0 <= waits[1] < 2.5  # what Retry-After asks for
    assert waits[3] < 0.5  # a time that is past


@pytest.mark.parametrize(
    ("answer", "message", "requests"),
    [
        ((500, {}, "out of order"), r"answered 500 \(out of order\), tried 3 times; see to the judge", 3),
        ((200, {}, "What a question!"), r"neither YES nor NO nor a score \(What a question!\), tried 3 times", 3),
        (
            (401, {}, "who are you"),
            r"answered 401 \(who are you\); check url, model, and the variable OPENAI_API_KEY",
            1,
        ),
        ((404, {}, "no such model"), r"answered 404 \(no such model\); check url, model", 1),
    ],
)
def test_what_fails_in_the_end_is_an_error(server: Server, answer: Answer, message: str, requests: int) -> None:
    server.behave = lambda number, asked: answer
    with pytest.raises(GradAlignError, match=f"reward 'judge' on problem 'k7': .*{message}"):
        pay(Judge(server.url, "m", TEMPLATE, retries=2), "4")
    assert len(server.bodies) == requests


def test_a_judge_that_is_down_slow_or_another_program(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(GradAlignError, match=r"problem 'k7': http://127.* cannot be reached .*, tried 2 times"):
        pay(Judge(down, "m", retries=1), "4")
    with pytest.raises(GradAlignError, match="answered 404"):
        pay(Judge(server.url + "/x", "m"), "4")
    server.delay = 1.0
    start = time.monotonic()
    with pytest.raises(GradAlignError, match=r"gave no answer within 0.2 s, tried 2 times"):
        pay(Judge(server.url, "m", retries=1, timeout=0.2), "4")
    assert time.monotonic() - start < 1.0
    server.delay = 0.0
    server.behave = lambda number, asked: (200, {"content-encoding": "gzip"}, "YES")
    with pytest.raises(GradAlignError, match=r"cannot be reached .*decompressing.*, tried 2 times"):
        pay(Judge(server.url, "m", retries=1), "4")
    server.behave = lambda number, asked: (200, {}, "YES")
    monkeypatch.setattr("json.dumps", lambda *_, **__: "<html>")
    with pytest.raises(GradAlignError, match=r"gave no JSON .<html>., tried 1 times"):
        pay(Judge(server.url, "m", retries=0), "4")


def test_failed_judgements_mark_the_problem_where_asked(server: Server) -> None:
    server.behave = lambda number, asked: (200, {}, "YES") if asked.endswith("R 4") else (200, {}, "?")
    judge = Judge(server.url, "m", TEMPLATE, retries=0, on_failure="failed")
    with pytest.warns(GradAlignWarning, match="problem 'k7': 2 of 3 responses could not be judged .*problem is failed"):
        paid = pay(judge, "4", "5", "5")
    assert paid[0] == 1.0
    assert math.isnan(paid[1])
    both = WeightedSum((Reward("judge", judge), Reward("exact", find_reward("exact"))), (1.0, 1.0))
    with pytest.warns(GradAlignWarning, match="could not be judged"):
        paid = both(PROBLEM, ["4", "5"], [[], []])
    assert paid[0] == 2.0
    assert math.isnan(paid[1])


def test_a_response_that_is_too_long_for_the_judge_fails_its_problem_alone(server: Server) -> None:
    server.behave = lambda number, asked: (200, {}, "YES") if asked.endswith("R 4") else (400, {}, "too long")
    judge = Judge(server.url, "m", TEMPLATE, retries=3, on_failure="failed")
    with pytest.warns(GradAlignWarning, match=r"1 of 2 responses could not be judged .*answered 400 .too long"):
        paid = pay(judge, "4", "5")
    assert paid[0] == 1.0
    assert math.isnan(paid[1])
    assert len(server.bodies) == 2
    with pytest.raises(GradAlignError, match=r"answered 400 \(too long\); check url, model"):
        pay(Judge(server.url, "m", TEMPLATE), "5")
    server.behave = lambda number, asked: (401, {}, "who are you")
    with pytest.raises(GradAlignError, match="answered 401"):
        pay(judge, "4")


def test_judgements_are_cached_for_several_processes_and_after_failures(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "judged.sqlite"
    judge = Judge(server.url, "m", TEMPLATE, retries=0, cache=str(cache), concurrency=1)
    server.behave = lambda number, asked: (200, {}, "YES") if number == 1 else (500, {}, "")
    with pytest.raises(GradAlignError, match="with cache=FILE nothing is asked twice"):
        pay(judge, "4", "5")
    assert len(server.bodies) == 2
    server.behave = lambda number, asked: (200, {}, "NO")
    assert sorted(pay(judge, "4", "5")) == [0.0, 1.0]  # the first verdict was kept, the other one asked for again
    assert len(server.bodies) == 3
    assert sorted(pay(Judge(server.url + "/", "m", TEMPLATE, cache=str(cache)), "4", "5")) == [0.0, 1.0]
    assert len(server.bodies) == 3
    for other in (Judge(server.url, "n", TEMPLATE, cache=str(cache)), Judge(server.url, "m", cache=str(cache))):
        before = len(server.bodies)
        pay(other, "4")
        assert len(server.bodies) == before + 1
    with ThreadPoolExecutor(4) as pool:  # writers beside one another
        made = Judge(server.url, "p", TEMPLATE, cache=str(cache))
        list(pool.map(lambda start: pay(made, *map(str, range(start, start + 5))), (0, 3, 6, 9)))
    with sqlite3.connect(cache) as database:
        assert database.execute("SELECT count(*) FROM judgements").fetchone()[0] == 2 + 2 + 14
    before = len(server.bodies)
    pay(made, *map(str, range(14)))
    assert len(server.bodies) == before
    (tmp_path / "text").write_text("not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(GradAlignError, match=r"cannot be used as a cache of judgements .*; name another file"):
        pay(Judge(server.url, "m", cache=str(tmp_path / "text")), "4")


def test_chat_problems_are_asked_by_their_text(server: Server) -> None:
    chat = Problem("k", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}], "4")
    assert Reward("judge", Judge(server.url, "m", TEMPLATE))(chat, ["four"], [[]]) == [1.0]
    assert server.bodies[0]["messages"][0]["content"] == "Q Be brief.\n2 + 2? A 4 R four"


def test_its_parameters_and_identity(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Grade {response}")
    from_file = find_reward(f"judge(url='http://a/v1', model='m', template='@{tmp_path / 't.txt'}')")
    written = find_reward("judge(url='http://a/v1', model='m', template='Grade {response}', cache='c', concurrency=2)")
    assert Reward("x", from_file).identity == Reward("y", written).identity
    assert Reward("x", from_file).identity != Reward("x", find_reward("judge(url='http://a/v1', model='m')")).identity
    for spec, message in {
        "judge": "reward 'judge': url: Field required",
        "judge(url='http://a')": "model: Field required",
        "judge(url='127.0.0.1:80', model='m')": "url is '127.0.0.1:80'; write the endpoint's address",
        "judge(url='http://a', model='m', template='x')": "template has no {response} in it",
        "judge(url='http://a', model='m', template='@/no/such')": "template: /no/such cannot be read",
        "judge(url='http://a', model='m', concurrency=0)": "concurrency: should be greater than or equal to 1",
        "judge(url='http://a', model='m', on_failure=zero)": "on_failure: should be 'error' or 'failed'",
        "judge(url='http://a', model='m', asked='x')": "unknown parameter 'asked'",
    }.items():
        with pytest.raises(GradAlignError, match=message.replace("{", r"\{")):
            find_reward(spec)
