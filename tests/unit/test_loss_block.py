"""What one chunk of the loss costs on a GPU, counted on a CPU that is given the GPU's sizes of chunk and block."""

from __future__ import annotations

import weakref
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.estimate.memory import BLOCK_ELEMENTS
from selfdistill.losses import normalise
from selfdistill.schema.methods import Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import head, network
from selfdistill.training.components import build_components
from selfdistill.training.data import CONTEXT, Row, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World
from tiny import tiny_model
from training_session import GRPO, SDPO, TOKENIZER, make_spec

#: Sizes of the published models.
GPU_VOCABULARY = 151_936
METHODS = {"sdpo": SDPO.model_copy(update={"teacher": Teacher()}), "grpo": GRPO}


class Calls(TorchDispatchMode):
    """Counts kernel-level calls (views are none).

    Does on a CPU what a GPU alone can: a float32 sum of products of 16-bit numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.products: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(function)
        self.names[name] += not (function.is_view or name == "aten.detach.default")
        if name == "aten.addmm.dtype_out":
            total, first, second, dtype = args
            assert kwargs["out"] is total and dtype == torch.float32
            return total.addmm_(first.float(), second.float())
        if "mm" in name:
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            self.products += [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
        return function(*args, **kwargs)


def count(method: str, chunks: int) -> Calls:
    """Calls of the losses and gradients of one micro-batch of that many chunks of 512 tokens."""
    model = tiny_model(len(TOKENIZER), tied=False)
    spec = make_spec(METHODS[method], precision="bfloat16")
    components = build_components(model, TOKENIZER, spec, StageRuntime(micro_batch_tokens=10**6), World("cpu"))
    teachers = {CONTEXT: TeacherPrompt([1, 2, 3, 4, 5])} if method == "sdpo" else {}
    plan = RowPlan(advantage=0.5, teachers=teachers)
    rows = [Row([1, 2, 3], [7] * 128, plan, [-1.0] * 128) for _ in range(4 * chunks)]
    calls = Calls()
    with calls:
        components.updater.run([rows], 1, lambda is_common: None)
    return calls


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    size = len(TOKENIZER)
    rows = normalise._BLOCK_ELEMENTS["cuda"] // GPU_VOCABULARY
    monkeypatch.setattr(network, "_CHUNK_ELEMENTS", {"cpu": 512 * size})
    monkeypatch.setattr(normalise, "_BLOCK_ELEMENTS", {"cpu": rows * size})
    monkeypatch.setattr(head, "_MIXED_PRODUCTS", {"cpu"})


def test_the_head_is_let_go_before_the_layers_are_gone_back_through():
    """Where weights are sharded it is a whole matrix with its gradient: 6 GB of an 8B model."""

    class Gathered:
        def backward(self, states, loss_of):
            return torch.ones_like(states)

    class Sharded:
        made = None

        def chunk_tokens(self):
            return 2

        @contextmanager
        def head(self, *, trains):
            gathered = Gathered()
            self.made = weakref.ref(gathered)
            yield gathered

    student, seen = Sharded(), []
    states = torch.zeros(3, 4, requires_grad=True)
    states.register_hook(lambda gradient: seen.append(student.made()))
    network.backward_through_head(student, states * 2, lambda part, logits: logits.sum())
    assert seen == [None]


@pytest.mark.parametrize("method", METHODS)
def test_a_chunk_takes_few_kernels(as_on_a_gpu, method):
    one, two = (count(method, chunks) for chunks in (1, 2))
    calls = two.names.total() - one.names.total()
    print(f"{method}: {calls} calls a chunk; {(two.names - one.names).most_common(60)}")
    assert 20 < calls <= 150


def test_the_gradient_of_the_head_is_no_float32_product(as_on_a_gpu):
    calls = count("sdpo", 1)
    assert calls.names["aten.addmm.dtype_out"] == 1
    assert calls.products
    size = len(TOKENIZER)
    assert not [shape for dtype, shape in calls.products if dtype == torch.float32 and size in shape]


def test_the_planner_knows_the_block():
    assert BLOCK_ELEMENTS == normalise._BLOCK_ELEMENTS


def test_a_sum_of_16_bit_products_is_that_of_their_float32_values(as_on_a_gpu):
    generator = torch.Generator().manual_seed(0)
    total, first, second = (torch.randn(shape, generator=generator) for shape in ((5, 3), (5, 7), (7, 3)))
    first = first.bfloat16()
    expected = total + first.float() @ second.bfloat16().float()
    with Calls():
        head._add_product(total, first, second)
    torch.testing.assert_close(total, expected)
