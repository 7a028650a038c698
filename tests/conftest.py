from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside one another
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for cards, run without one

import hypothesis
import numpy as np
import psutil
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from gradalign.cli.main import main
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy, cover, load_policy
from gradalign.policy.where import EMBEDDED
from tests.model_server import ModelServer, served

hypothesis.settings.register_profile(
    "project", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("project")

SHARED = Path(os.environ.get("GRADALIGN_SHARED", Path(__file__).parents[2] / "shared"))
VOCABULARY = 61


def _common(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None,
        "eos_token_id": 1, "pad_token_id": None, **more,
    }  # fmt: skip


CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_common(tie_word_embeddings=False)),
    "llama-tied": lambda: transformers.LlamaConfig(**_common(tie_word_embeddings=True)),
    "qwen2": lambda: transformers.Qwen2Config(**_common(tie_word_embeddings=False)),  # biases
    "qwen2-tied": lambda: transformers.Qwen2Config(**_common(tie_word_embeddings=True)),
    "gpt2": lambda: transformers.GPT2Config(  # Conv1D, LayerNorm, learnt positions, dropout, tied
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=1
    ),
    # scaled embeddings, (1 + w) norms, a padding row that autograd leaves alone, tied
    "gemma": lambda: transformers.GemmaConfig(**_common(head_dim=8, pad_token_id=0)),
    # the same with sliding windows and soft-capped logits
    "gemma2": lambda: transformers.Gemma2Config(**_common(head_dim=8, pad_token_id=0, sliding_window=64)),
}


def make_policy(name: str, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> Policy:
    """A small random policy; weights are scaled up so that its distributions are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02).mul_(scale if parameter.ndim > 1 else 1.0)
    return cover(model.to(dtype).eval(), name)


def make_groups(count: int, seed: int, rollouts: int = 5, masks: bool = False, prefix: str = "g") -> list[Group]:
    """Groups of random tokens, lengths and 0/1 rewards."""
    rng = np.random.default_rng(seed)
    groups = []
    for index in range(count):
        sampled = []
        for _ in range(rollouts):
            length = int(rng.integers(1, 9))
            mask = rng.random(length) < 0.7 if masks else None
            if mask is not None:
                mask[rng.integers(length)] = True
            sampled.append(Rollout(rng.integers(0, VOCABULARY, length), float(rng.integers(0, 2)), mask))
        sampled[0].reward, sampled[1].reward = 0.0, 1.0
        groups.append(Group(f"{prefix}{index}", rng.integers(0, VOCABULARY, int(rng.integers(1, 12))), sampled))
    return groups


@pytest.fixture(scope="session")
def embedded() -> Policy:
    return load_policy("embedded", device="cpu")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    make_policy("llama").model.save_pretrained(folder)
    return folder


@dataclass
class Ran:
    """What a command gave."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a mistake's message; fails where there is anything else."""
        assert self.status == 2, (self.status, self.out, self.err)
        lines = [line for line in self.err.splitlines() if ": warning: " not in line]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    """The embedded policy, served from this process."""
    with served(ModelServer(EMBEDDED)) as made:
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that failed are repeated at once; no key is set."""
    monkeypatch.setattr("gradalign.endpoint.FIRST_WAIT", 0.01)
    monkeypatch.delenv("GRADALIGN_SERVER_KEY", raising=False)


@pytest.fixture
def gradalign(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in this process."""

    def run(*arguments: Any) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


def spawn(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return finish([sys.executable, "-m", "gradalign", *map(str, arguments)], **options)


def finish(command: list[str], seconds: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; beyond its time it fails, and nothing that it has started lives on.

    `subprocess.run` would kill the command alone, and then wait for its children, who hold the pipes.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with psutil.Popen(command, stdout=out, stderr=err, text=True, **options) as process:
            try:
                process.wait(seconds)
            except psutil.TimeoutExpired:
                for one in [*process.children(recursive=True), process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                err.seek(0)
                pytest.fail(f"not done in {seconds} s: {' '.join(command)[:300]}\n{err.read()[-3000:]}")
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())


def _missing(what: str) -> None:
    """A needed resource is not there: in CI that is a failure, elsewhere the test is listed as not run."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; CI must have it")
    pytest.skip(f"not run: {what}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real problems beside the checkout."""
    if not (SHARED / "data").is_dir():
        _missing(f"no folder {SHARED} with real problems (set GRADALIGN_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo's folder; tests that change it change a copy."""
    out = tmp_path_factory.mktemp("report") / "demo"
    sizes = ["--problems", 64, "--validation", 32, "--test", 16, "--rollouts", 8, "--validation-rollouts", 8]
    assert main([str(a) for a in ("demo", "--out", out, *sizes, "--rounds", 2, "--steps-per-round", 1)]) == 0
    return out


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser that pages are opened in."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        _missing("no Chromium to open pages in (Debian: apt-get install chromium)")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def smollm2() -> str:
    """A folder with SmolLM2-135M-Instruct."""
    tool = SHARED / "tools" / "get_smollm2.py"
    if not tool.exists():
        _missing(f"no {tool} to fetch SmolLM2-135M-Instruct")
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        _missing(f"SmolLM2-135M-Instruct could not be fetched: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip().splitlines()[-1]


__all__ = ["EMBEDDED", "Ran", "finish", "make_groups", "make_policy", "spawn"]
