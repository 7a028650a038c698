"""A server of a real model on the loopback that speaks as vLLM or as SGLang does, for the machines that hold neither.

    python -m tests.model_server FOLDER [--protocol vllm|sglang] [--dtype float32] [--processed] [--development]

prints its address and serves until it is killed. It computes with transformers, one response at a time. A test may also
start it in its own process (`served`) and spoil its answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.http_server import QuietServer

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, and a JSON value or a text."""


@dataclass
class ModelServer:
    """What is served, and what was asked.

    Attributes:
        folder: of the model.
        protocol: vllm or sglang.
        dtype: of the weights.
        processed: log-probabilities are of the distribution that is sampled (always, where SGLang is spoken).
        development: whether the endpoints are there that load weights and tell the type of the weights.
        name: of the model, for vLLM.
        key: that requests must bear, where given.
        spoil: gets the number of a request for a response, its body and its answer; gives the answer to send.
        bodies: of the requests for responses, in order.
        most: such requests at one time, at most.
    """

    folder: Path
    protocol: str = "vllm"
    dtype: str = "float32"
    processed: bool = False
    development: bool = True
    name: str = "policy"
    key: str | None = None
    spoil: Callable[[int, dict[str, Any], Answer], Answer] = lambda number, body, answer: answer
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def load(self, folder: str) -> None:
        """Take the weights in ``folder``."""
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, self.dtype))
        self.model.eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)

    @torch.no_grad()
    def sample(
        self, prompt: list[int], asked: dict[str, Any], seed: int, longest: int
    ) -> tuple[list[int], list[float], str, str]:
        """(ids, log-probabilities, text, why it ended)."""
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = []
        logprobs: list[float] = []
        for _ in range(longest):
            with self.lock:
                logits = self.model(torch.tensor([prompt + ids])).logits[0, -1].float()
            warm = torch.log_softmax(logits / asked["temperature"], 0)
            token = int(torch.multinomial(warm.exp(), 1, generator=generator))
            kept = warm if self.processed or self.protocol == "sglang" else torch.log_softmax(logits, 0)
            ids.append(token)
            logprobs.append(float(kept[token]))
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            if token in asked["stop_token_ids"]:
                return ids, logprobs, self.tokenizer.decode(ids[:-1], skip_special_tokens=True), "stop"
            if any(stop in text for stop in asked["stop"]):
                return ids, logprobs, text[: min(text.index(stop) for stop in asked["stop"] if stop in text)], "stop"
        return ids, logprobs, text, "length"

    def completion(self, body: dict[str, Any]) -> Answer:
        """vLLM's ``/v1/completions``."""
        if body["model"] != self.name:
            return 404, {}, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if max(body["prompt"]) >= self.model.config.vocab_size:
            return 400, {}, {"error": {"message": f"Token id {max(body['prompt'])} is out of vocabulary"}}
        ids, logprobs, text, reason = self.sample(body["prompt"], body, body["seed"], body["max_tokens"])
        said = {"token_logprobs": logprobs, "tokens": [f"token_id:{token}" for token in ids]}
        choice = {
            "index": 0, "text": text, "finish_reason": reason, "logprobs": said, "token_ids": ids,
            "prompt_token_ids": body["prompt"],
        }  # fmt: skip
        return 200, {}, {"model": self.name, "choices": [choice]}

    def generation(self, body: dict[str, Any]) -> Answer:
        """SGLang's ``/generate``."""
        asked = body["sampling_params"]
        ids, logprobs, text, reason = self.sample(
            body["input_ids"], asked, asked["sampling_seed"], asked["max_new_tokens"]
        )
        given = [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)]
        about = {"finish_reason": {"type": reason}, "output_token_logprobs": given}
        return 200, {}, {"text": text, "output_ids": ids, "meta_info": about}

    def respond(self, body: dict[str, Any]) -> Answer:
        """A request for a response."""
        with self.lock:
            self.bodies.append(body)
            number = len(self.bodies)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            answer = self.completion(body) if self.protocol == "vllm" else self.generation(body)
            return self.spoil(number, body, answer)
        finally:
            with self.lock:
                self.now -= 1

    def answer(self, path: str, body: Any) -> Answer:
        """What is at a path."""
        route = path.split("?")[0]
        if route == "/v1/models":
            card = {
                "id": self.name,
                "owned_by": self.protocol,
                "max_model_len": self.model.config.max_position_embeddings,
            }
            return 200, {}, {"object": "list", "data": [card]}
        if route == ("/v1/completions" if self.protocol == "vllm" else "/generate"):
            return self.respond(body)
        if route == "/version" and self.protocol == "vllm":
            return 200, {}, {"version": "0.32.0"}
        if route == "/server_info" and self.protocol == "sglang":
            return 200, {}, {"version": "0.5.10", "dtype": self.dtype}
        if not self.development:
            return 404, {}, {"detail": "Not Found"}
        if route == "/server_info":
            return 200, {}, {"vllm_config": {"model_config": {"dtype": f"torch.{self.dtype}"}}}
        if route == "/collective_rpc" and body["method"] == "reload_weights":
            self.load(body["kwargs"]["weights_path"])
            return 200, {}, {"results": [None]}
        if route == "/reset_prefix_cache":
            return 200, {}, {"success": True}
        if route == "/update_weights_from_disk" and self.protocol == "sglang":
            if not (Path(body["model_path"]) / "config.json").exists():
                return 400, {}, {"success": False, "message": "no such model"}
            self.load(body["model_path"])
            return 200, {}, {"success": True, "message": "Succeeded to update model weights."}
        return 404, {}, {"detail": "Not Found"}

    def start(self) -> QuietServer:
        """Begin to serve, in threads; `url` says where."""
        self.load(str(self.folder))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(None)

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def reply(self, body: Any) -> None:
                answer: Answer = (401, {}, {"error": "Unauthorized"})
                if outer.key is None or self.headers.get("authorization") == f"Bearer {outer.key}":
                    answer = outer.answer(self.path, body)
                status, headers, value = answer
                sent = (value if isinstance(value, str) else json.dumps(value)).encode()
                with contextlib.suppress(OSError):  # who asked has left
                    self.send_response(status)
                    for name, text in {"content-length": str(len(sent)), **headers}.items():
                        self.send_header(name, text)
                    self.end_headers()
                    self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                """Silent."""

        server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


@contextlib.contextmanager
def served(made: ModelServer) -> Iterator[ModelServer]:
    """Serve in this process."""
    server = made.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def spawned(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve in a process of its own: (process, address); it is killed at the end."""
    command = [sys.executable, "-m", "tests.model_server", str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        watch.cancel()
        process.kill()
        process.wait(10)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--protocol", default="vllm")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--processed", action="store_true")
    parser.add_argument("--development", action="store_true")
    given = parser.parse_args()
    made = ModelServer(given.folder, given.protocol, given.dtype, given.processed, given.development)
    made.start()
    print(made.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
