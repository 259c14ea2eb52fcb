"""Sampling: tokens per second of our torch sampler against the library's `generate`, with either of its caches.

128 completions (16 prompts x 8) of at most 256 tokens for the toy, 64 (8 x 8) for 20 and 100 million weights: many
short and a few long ones, the same lengths on every side (networks.py). Temperature 1, nothing truncated, float32. Only
tokens of completions count, and the time of a whole call. vLLM is a peer where it can be imported; its CPU build does
not know the toy's attention heads, so there both sides run the toy's widths in heads of twice the size.

    python benchmarks/rollouts.py [--sizes toy 20M] [--profile toy] [--repeats 5] [--json]
"""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec

from harness import Pair, Quantity, child, options, run
from networks import (
    END,
    PADDING,
    SIZES,
    completion_lengths,
    force_lengths_in_library,
    force_lengths_in_torch_sampler,
    make_network,
    make_questions,
    make_tokenizer,
)

GROUP, LIMIT, WORDS = 8, 256, 24
PROMPTS = {"toy": 16, "toy, heads of 32": 16, "20M": 8, "100M": 8}
#: What vLLM is compared on; its CPU build cannot compute the toy's heads of 16.
OF_VLLM = {"toy": "toy, heads of 32", "20M": "20M", "100M": "100M"}
PEERS = {"generate, dynamic cache": "dynamic", "generate, static cache": "static"}


def prompts_of(size: str) -> list[list[int]]:
    chats = make_questions(PROMPTS[size], WORDS, SIZES[size]["vocab_size"])
    return make_tokenizer(size).apply_chat_template(chats, add_generation_prompt=True, return_dict=False)


def uncounted(size: str) -> int:
    """Turns before those that count; minutes of 100 million weights need none."""
    return 0 if size == "100M" else 1


def ours(size: str, turns: int) -> list[float]:
    """Tokens per second of each turn."""
    from selfdistill.generation.torch_sampler import TorchSampler
    from selfdistill.schema.common import Sampling

    prompts, lengths = prompts_of(size), completion_lengths(PROMPTS[size] * GROUP, LIMIT)
    seeds = [[place * GROUP + sample for sample in range(GROUP)] for place in range(len(prompts))]
    force_lengths_in_torch_sampler(dict(enumerate(lengths)))
    sampler = TorchSampler(make_network(size), [END], pad_token_id=PADDING)
    found = []
    for _ in range(turns + uncounted(size)):
        start = time.perf_counter()
        answers = sampler.generate(prompts, seeds, Sampling(max_tokens=LIMIT))
        seconds = time.perf_counter() - start
        assert [len(c.token_ids) for group in answers for c in group] == lengths
        found.append(sum(lengths) / seconds)
    return found[uncounted(size) :]


def library(size: str, cache: str, turns: int) -> list[float]:
    """The same with the library's `generate`, all rows in one batch, padded on the left."""
    import torch

    lengths = completion_lengths(PROMPTS[size] * GROUP, LIMIT)
    rows = [prompt for prompt in prompts_of(size) for _ in range(GROUP)]
    width = max(map(len, rows))
    ids = torch.tensor([[PADDING] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    model = make_network(size)
    forced = force_lengths_in_library(lengths, width)
    options = {"cache_implementation": "static"} if cache == "static" else {}
    found = []
    for _ in range(turns + uncounted(size)):
        start = time.perf_counter()
        with torch.no_grad():
            answers = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
                max_new_tokens=LIMIT, logits_processor=forced, disable_compile=True, **options,
            )  # fmt: skip
        seconds = time.perf_counter() - start
        assert [row.index(END) + 1 for row in answers[:, width:].tolist()] == lengths
        found.append(sum(lengths) / seconds)
    return found[uncounted(size) :]


def vllm(size: str, turns: int) -> list[float]:
    """The same with vLLM, which stops each request at its own length limit."""
    import tempfile
    from pathlib import Path

    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    from selfdistill.generation.vllm_sampler import VllmSampler
    from selfdistill.schema.runtime import StageRuntime

    lengths = completion_lengths(PROMPTS[size] * GROUP, LIMIT)
    rows = [prompt for prompt in prompts_of(size) for _ in range(GROUP)]
    with tempfile.TemporaryDirectory() as folder:
        make_network(size).save_pretrained(folder)
        make_tokenizer(size).save_pretrained(folder)
        engine = VllmSampler.load(Path(folder), StageRuntime()).engine
    wanted = [SamplingParams(max_tokens=n, ignore_eos=True, seed=n, logprobs=0, detokenize=False) for n in lengths]
    found = []
    for _ in range(turns + uncounted(size)):
        start = time.perf_counter()
        engine.generate([TokensPrompt(prompt_token_ids=row) for row in rows], wanted, use_tqdm=False)
        found.append(sum(lengths) / (time.perf_counter() - start))
    return found[uncounted(size) :]


def profile(size: str) -> None:
    """Where our sampler's time goes: the operations that take most of it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    ours(size, 1)
    with record(activities=[ProfilerActivity.CPU]) as recorded:
        ours(size, 1)
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def pairs(sizes: list[str]):
    sampled = (Quantity("sampling", "tokens/s"),)
    for size in sizes:
        for name, cache in PEERS.items():
            yield Pair(
                f"{size} network", name, sampled,
                ours=lambda s=size: child(__file__, "ours", size=s, turns=1).value[0],
                peer=lambda s=size, c=cache: child(__file__, "library", size=s, cache=c, turns=1).value[0],
                warm_up=False,
            )  # fmt: skip
        if find_spec("vllm") is not None:
            yield Pair(
                f"{OF_VLLM[size]} network", "vLLM", sampled,
                ours=lambda s=OF_VLLM[size]: child(__file__, "ours", size=s, turns=1).value[0],
                peer=lambda s=OF_VLLM[size]: child(__file__, "vllm", size=s, turns=1).value[0],
                warm_up=False,
            )  # fmt: skip
    if find_spec("vllm") is None:
        print("vLLM is not a peer here: it cannot be imported.", file=sys.stderr)


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=OF_VLLM, default=list(OF_VLLM), help="networks")
    parser.add_argument("--profile", choices=OF_VLLM, help="print where the time of our sampler goes, and nothing else")
    chosen = parser.parse_args()
    if chosen.profile:
        profile(chosen.profile)
    else:
        run(pairs(chosen.sizes), chosen)
