"""Make the embedded default: a character-level Llama of about 0.8M parameters, partly able at small sums.

    python scripts/train_embedded_policy.py --out gradalign/policy/embedded

Plain next-character training on problems of ``gradalign.problems.embedded`` (the loss on the response alone),
stopped well before convergence, so that pass rates spread over 0 to 1 and reinforcement learning has something
left to teach. About 10 minutes on one CPU core; prints the pass rates of every family as it goes. The folder it
writes is an ordinary Hugging Face model: config, safetensors, tokenizer.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradalign.problems.embedded import POOLS, make_pool, stream
from gradalign.rewards.countdown import countdown

CHARACTERS = "0123456789+-*()=,>"
MIXTURE = {"add1": 1, **POOLS["mixed"]}


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def batch_of(problems: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    rows, labels = [], []
    for prompt, response in problems:
        p, r = tokenizer.encode(prompt), [*tokenizer.encode(response), tokenizer.eos_token_id]
        rows.append(torch.tensor(p + r))
        labels.append(torch.tensor([-100] * len(p) + r))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, True, tokenizer.pad_token_id), pad(labels, True, -100)


@torch.no_grad()
def pass_rates(model: Any, tokenizer: PreTrainedTokenizerFast, samples: int = 16) -> dict[str, float]:
    """Mean pass rate at temperature 1 by family, and the shares of problems never and always passed."""
    problems = make_pool("mixed", 192, seed=999)
    groups: dict[str, list[float]] = {}
    for problem in problems:
        inputs = tokenizer(problem.prompt, return_tensors="pt").input_ids
        output = model.generate(inputs, do_sample=True, num_return_sequences=samples, max_new_tokens=12)
        texts = tokenizer.batch_decode(output[:, inputs.shape[1] :], skip_special_tokens=True)
        passed = countdown(texts, [problem.answer] * samples, [problem.metadata.get("numbers")] * samples)
        groups.setdefault(problem.source, []).append(sum(passed) / samples)
    rates = [rate for group in groups.values() for rate in group]
    report = {family: sum(group) / len(group) for family, group in sorted(groups.items())}
    report |= {"all": sum(rates) / len(rates)}
    report |= {f"share at {end:g}": rates.count(end) / len(rates) for end in (0.0, 1.0)}
    return {name: round(value, 3) for name, value in report.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write; each evaluation overwrites it")
    parser.add_argument("--steps", type=int, default=6000, help="length of the learning-rate schedule, in steps")
    parser.add_argument("--stop", type=int, default=1000, help="stop at this step, long before the schedule ends")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters", flush=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=options.steps, pct_start=0.05)
    problems = ((made[0], made[1]) for _, made in stream(MIXTURE, options.seed + 1))
    for step in range(1, options.stop + 1):
        inputs, labels = batch_of(list(islice(problems, options.batch)), tokenizer)
        loss = model(inputs, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % options.evaluate_every == 0 or step == options.stop:
            model.eval()
            rates = pass_rates(model, tokenizer)
            print(json.dumps({"step": step, "loss": round(loss.item(), 4), **rates}), flush=True)
            model.train()
            model.save_pretrained(options.out)
            tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
