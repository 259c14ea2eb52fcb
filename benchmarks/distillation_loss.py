"""The distillation loss over a large vocabulary: memory and time of our chunked kernel against TRL's two ways.

From the last hidden states of student and teacher [N, H] to the loss and the gradients of hidden states and head: the
student's 100 most likely tokens of 151,936 and one category for the rest, alpha 0.5. H = 256 in float32, or as asked:
`--hidden 4096 --precision bfloat16` is the head of Qwen3-8B in training (float32 weights, products in bfloat16).

    ours         training.network.backward_through_head with losses.divergence: a chunk of tokens at a time
    TRL top-k    what SDPOTrainer runs: its _forward_logits for both, then its top-k loss: whole logits of N tokens
    TRL tiled    TRL's stable kernel of chunked divergence, in tiles of 4,096 x 32,768. It has no top-k: it computes the
                 divergence over the whole vocabulary, which is more work; its memory is what a user would see

Kernels that run on no CPU are counted from their source (`counted`, on standard error): FLOP of their matrix products
and bytes above the inputs that they cannot do without. Liger's fused linear JSD has no top-k; verl's fused linear
cross-entropy gives one token's log-prob and the entropy, so it serves no divergence at all.

Memory is the peak above the inputs (hidden states, heads), so it holds the gradient of the head on every side. CPU time
is what wall-clock time is on an idle machine with one thread. Every measurement is a fresh process. A peer that would
not fit into the machine's free memory is not run: its need is extrapolated from two smaller N and reported.

    python benchmarks/distillation_loss.py [--tokens 512 2048] [--hidden 4096] [--precision bfloat16] [--repeats 3]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

from harness import Pair, Quantity, child, options, run

VOCABULARY, HIDDEN, TOP_K, ALPHA = 151_936, 256, 100, 0.5
#: Of the call that loads what a first call loads.
WARM_UP_HIDDEN = 16
#: Completion tokens of a narrow head, and of one above this width, where each takes as long as many.
TOKENS, WIDE, WIDE_TOKENS = (512, 2048, 4096, 8192), 1024, (128, 512)
#: TRL's top-k loss is measured at these to know what it would need at a larger N.
PROBES = {False: (256, 512), True: (64, 128)}
#: How far norms of gradients of two ways may be apart.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}
#: Share of the free memory that a measurement may ask for.
ALLOWED = 0.85
QUANTITIES = (
    Quantity("peak memory", "MiB", "lower"),
    Quantity("time", "s", "lower"),
    Quantity("CPU time", "s", "lower"),
)


def inputs(tokens: int, hidden: int, precision: str):
    """Hidden states and head of student (with gradients) and teacher, in float32; a bfloat16 training holds the
    teacher's head in bfloat16, as its base model was published."""
    import torch

    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(tokens, hidden, generator=generator) for _ in range(2))
    heads = [torch.nn.Linear(hidden, VOCABULARY, bias=False) for _ in range(2)]
    for head in heads:
        # Logits with a standard deviation of 2: neither flat nor certain.
        torch.nn.init.normal_(head.weight, std=2 / hidden**0.5, generator=generator)
    heads[1].requires_grad_(False).to(getattr(torch, precision))
    return student.requires_grad_(), teacher, heads[0], heads[1]


def ours(student, teacher, head, teacher_head, precision: str) -> None:
    import torch

    from selfdistill.losses import divergence
    from selfdistill.training.network import Network, backward_through_head

    dtype = getattr(torch, precision)
    networks = [Network(Headed(each), compute_dtype=dtype) for each in (head, teacher_head)]
    with networks[1].head() as teacher_logits:

        def loss_of_chunk(part, student_logits):
            with torch.no_grad():
                shown = teacher_logits(teacher[part])
            return divergence(student_logits, shown, alpha=ALPHA, top_k=TOP_K, add_tail=True).sum() / len(student)

        # The states must have a graph above them, as those of a network have.
        backward_through_head(networks[0], student * 1, loss_of_chunk)


class Headed:
    """As much of a causal model as the kernel asks for: an output matrix and the size of its vocabulary."""

    def __init__(self, head) -> None:
        self.head = head
        text = SimpleNamespace(vocab_size=head.out_features)
        self.config = SimpleNamespace(get_text_config=lambda: text, _attn_implementation="sdpa")

    def parameters(self):
        return self.head.parameters()

    def get_output_embeddings(self):
        return self.head


def trl_top_k(student, teacher, head, teacher_head, precision: str) -> None:
    import torch
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss
    from trl.experimental.sdpo.sdpo_trainer import SDPOTrainer

    trainer = SimpleNamespace(model_kwarg_keys={"logits_to_keep"}, temperature=1.0)

    def logits(states, matrix):
        # Their trainer keeps one position more than it needs and drops it.
        longer = torch.cat([states, states[-1:]])[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            made = matrix(longer)
        model = lambda **_: SimpleNamespace(logits=made)  # noqa: E731
        return SDPOTrainer._forward_logits(trainer, model, None, None, len(states))

    student_logits = logits(student, head)
    with torch.no_grad():
        teacher_logits = logits(teacher, teacher_head)
    losses = compute_topk_self_distillation_loss(
        student_logits, teacher_logits, distillation_topk=TOP_K, distillation_alpha=ALPHA, distillation_add_tail=True
    )
    losses.mean().backward()


def trl_tiled(student, teacher, head, teacher_head, precision: str) -> None:
    import torch
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    given = [each.to(getattr(torch, precision)) for each in (student, head.weight, teacher, teacher_head.weight)]
    found, _ = ChunkedDivergenceFunction.apply(given[0], given[1], None, given[2], given[3], None, ALPHA)
    found.mean().backward()


WAYS = {"ours": ours, "TRL top-k": trl_top_k, "TRL tiled": trl_tiled}


def measure(way: str, tokens: int, hidden: int, precision: str) -> list[float]:
    """Peak MiB above the inputs, seconds, and seconds of CPU; to be called in a fresh process."""
    work = WAYS[way]
    work(*inputs(2, WARM_UP_HIDDEN, precision), precision)
    given = inputs(tokens, hidden, precision)
    baseline = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start, cpu = time.perf_counter(), time.process_time()
    work(*given, precision)
    return [_memory("VmHWM") - baseline, time.perf_counter() - start, time.process_time() - cpu]


def gradients(way: str, tokens: int, hidden: int, precision: str) -> list[float]:
    """Norms of the gradients of hidden states and head: equal for two ways that compute the same."""
    given = inputs(tokens, hidden, precision)
    WAYS[way](*given, precision)
    return [float(given[0].grad.norm()), float(given[2].weight.grad.norm())]


def counted(tokens: int, hidden: int, precision: str) -> list[tuple[str, float, float]]:
    """(kernel, MiB above the inputs, TFLOP of matrix products), least counts from the sources of the kernels.

    Each product of states [N, H] and a head [V, H] takes 2 N H V operations. Weights and their gradient are of the
    compute type, as these kernels have them; ours keeps both in float32.
    """
    each, logits = {"float32": 4, "bfloat16": 2}[precision], tokens * VOCABULARY
    product = 2.0 * logits * hidden
    head = VOCABULARY * hidden
    # linkedin/Liger-Kernel, ops/fused_linear_jsd.py: rows of a chunk are the next power of two of N / ceil(V / H).
    rows = 1 << (-(-tokens // -(-VOCABULARY // hidden)) - 1).bit_length()
    # The gradient and a chunk's share of it; the loss of every logit; logits and log-probs of both in float32.
    liger = 2 * each * head + 4 * logits + 4 * 4 * rows * VOCABULARY
    # volcengine/verl, utils/kernel/kernels.py, separate backward: the gradient of all logits is stored.
    verl = each * (head + logits)
    return [
        ("Liger fused linear JSD, whole vocabulary", liger / 2**20, 4 * product / 1e12),
        ("verl fused linear cross-entropy, student alone", verl / 2**20, 4 * product / 1e12),
        ("ours: student, teacher, two gradients", _our_bytes(tokens, hidden, each) / 2**20, 4 * product / 1e12),
    ]


def _our_bytes(tokens: int, hidden: int, each: int) -> int:
    """The head's gradient; its cast to the compute type; logits of both of one chunk and the student's gradient."""
    from selfdistill.estimate.workload import CHUNK_ELEMENTS

    head = VOCABULARY * hidden
    chunk = min(tokens * VOCABULARY, CHUNK_ELEMENTS["cpu"])
    return 4 * head + (2 * head if each == 2 else 0) + 3 * 4 * chunk


def _memory(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def _free_mib() -> float:
    return int(Path("/proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")[1].split()[0]) / 1024


def pairs(token_counts: list[int], hidden: int, precision: str):
    """What fits; the rest is said on standard error."""

    def in_child(function, way, tokens):
        return child(__file__, function, way=way, tokens=tokens, hidden=hidden, precision=precision).value

    same = [in_child("gradients", way, 64) for way in ("ours", "TRL top-k")]
    if any(abs(a / b - 1) > TOLERANCE[precision] for a, b in zip(*same, strict=True)):
        sys.exit(f"error: the gradients differ ({same}): the comparison means nothing")
    print(f"gradient norms agree with TRL top-k: {same}", file=sys.stderr)
    probes = PROBES[hidden > WIDE]
    small, large = (in_child("measure", "TRL top-k", n)[0] for n in probes)
    slope = (large - small) / (probes[1] - probes[0])
    for tokens in token_counts:
        for kernel, memory, operations in counted(tokens, hidden, precision):
            print(f"counted, N = {tokens:,}: {kernel}: {memory:,.0f} MiB, {operations:.2f} TFLOP", file=sys.stderr)
        for way in ("TRL top-k", "TRL tiled"):
            needed = large + slope * (tokens - probes[1]) if way == "TRL top-k" else 0
            if needed > ALLOWED * _free_mib():
                print(
                    f"{way} at N = {tokens:,} does not fit: it would need {needed:,.0f} MiB ({slope:.2f} MiB a token, "
                    f"from N = {probes[0]} and {probes[1]}), and {_free_mib():,.0f} MiB are free.",
                    file=sys.stderr,
                )
                continue
            yield Pair(
                f"N = {tokens:,}, H = {hidden:,}, {precision}", way, QUANTITIES,
                ours=lambda n=tokens: in_child("measure", "ours", n),
                peer=lambda n=tokens, w=way: in_child("measure", w, n),
                warm_up=False,
            )  # fmt: skip


if __name__ == "__main__":
    parser = options(__doc__, repeats=3)
    parser.add_argument("--tokens", type=int, nargs="+", help="completion tokens N")
    parser.add_argument(
        "--hidden", type=int, default=HIDDEN, help="width H of the hidden states (default: %(default)s)"
    )
    parser.add_argument("--precision", choices=TOLERANCE, default="float32", help="type of the matrix products")
    chosen = parser.parse_args()
    tokens = chosen.tokens or list(WIDE_TOKENS if chosen.hidden > WIDE else TOKENS)
    run(pairs(tokens, chosen.hidden, chosen.precision), chosen)
