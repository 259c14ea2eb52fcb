"""The teacher: the initial policy, an average or copy of later ones, the present one, or a mixture of first and last.

    ema, after all updates of a step:   teacher <- (1 - rate) teacher + rate policy        (docs/method.md 4)
    snapshot, after every n-th step:    teacher <- policy
    trust_region, at every token:       logits <- (1 - rate) initial policy's + rate policy's

`fixed` is the paper's main setting. The initial policy is held in bfloat16 where that changes no bit (`narrow.py`).
Only a teacher that moves is saved in states, since the initial policy is the base model. No copy is made before the
first update. Weights that never change (with adapters) are shared with the policy, unless they are sharded over ranks.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.schema.methods import Teacher
from selfdistill.training.narrow import narrow_weights, stored_in_bfloat16, widen_embeddings
from selfdistill.training.network import Network
from selfdistill.training.prefix import Prefixes, Reading
from selfdistill.training.weights import trained_parameters

_LOG = logging.getLogger(__name__)

#: A slice of the micro-batch's tokens -> the teacher's logits [n, V].
TeacherLogits = Callable[[slice], Tensor]


@dataclass(frozen=True)
class ShownLogits:
    """The teacher's logits under one context, for the m of n tokens whose row has it (`is_shown` None: all n)."""

    logits: Tensor  # [m, V]
    is_shown: Tensor | None = None  # [n]

    def mask(self, count: int) -> Tensor:
        """`is_shown` of that many tokens."""
        if self.is_shown is not None:
            return self.is_shown
        return torch.ones(count, dtype=torch.bool, device=self.logits.device)


class TeacherNetwork:
    """The teacher's weights. Must be created before a state is loaded into the policy."""

    def __init__(self, settings: Teacher, student: Network) -> None:
        self.settings = settings
        self.student = student
        self.network = student
        self.is_separate = settings.kind == "live"
        self.prefixes = Prefixes()

    def separate(self, base: Path | None = None) -> None:
        """Copy the current policy. To be called before its first change; later calls do nothing.

        `base`: the folder of the weights, where the policy has no memory yet.
        """
        if self.is_separate:
            return
        self.is_separate = True
        narrow: dict[int, Tensor] = {}
        if self._may_be_narrow():
            narrow = narrow_weights(self.student.model, None if base is None else stored_in_bfloat16(base))
        self.use(_copy(self.student.model, narrow))
        if base is None and not self.is_exact():
            self.use(_copy(self.student.model, {}))

    def use(self, model: Any) -> None:
        """Teach with this model."""
        widen_embeddings(model)
        model.requires_grad_(False).eval()
        self.network = Network(
            model,
            temperature=self.student.temperature,
            compute_dtype=self.student.compute_dtype,
            compiles=self.student.compiles,
        )

    def _may_be_narrow(self) -> bool:
        """Whether bfloat16 may hold the teacher: it never changes, is all of a network, and computes in that type."""
        is_whole = all(parameter.requires_grad for parameter in self.student.model.parameters())
        is_fixed = self.settings.kind in ("fixed", "trust_region")
        return is_fixed and is_whole and self.student.compute_dtype == torch.bfloat16

    def is_exact(self) -> bool:
        """Whether weights in bfloat16, if there are any, change no bit now. Collective where weights are sharded."""
        if all(parameter.dtype != torch.bfloat16 for parameter in self.network.model.parameters()):
            return True
        tokens = ([[0, 1]], [[0, 1, 0]], Reading())
        with torch.no_grad(), self.student.plain_layers():
            is_same = torch.equal(
                self.prefixes.hidden(self.network, *tokens), self.prefixes.hidden(self.student, *tokens)
            )
        if not is_same:
            _LOG.warning("the teacher computes otherwise with weights in bfloat16, so it holds them in float32")
        return is_same

    @contextmanager
    def logits(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        reading: Reading,
    ) -> Iterator[TeacherLogits]:
        """The teacher's logits of a micro-batch, without gradient. Collective where weights are sharded."""
        networks = [self.network]
        if self.settings.kind == "trust_region":
            networks.append(self.student)
        with ExitStack() as stack, torch.no_grad():
            hidden = [self.prefixes.hidden(network, prompts, completions, reading) for network in networks]
            heads = [stack.enter_context(network.head()) for network in networks]

            @torch.no_grad()
            def of(part: slice) -> Tensor:
                found = [head(states[part]) for head, states in zip(heads, hidden, strict=True)]
                return found[0] if len(found) == 1 else torch.lerp(*found, self.settings.rate)

            with torch.enable_grad():
                yield of

    @contextmanager
    def shown(
        self,
        prompts: Sequence[Sequence[int] | None],
        completions: Sequence[Sequence[int]],
        reading: Reading,
    ) -> Iterator[Callable[[slice], ShownLogits | None]]:
        """The teacher's logits of a micro-batch in which some rows lack a prompt (None): these are not forwarded.

        The result takes a slice of all tokens of the micro-batch; None where no row of it has a prompt.
        """
        rows = [(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True) if prompt]
        lengths = [len(completion) for completion in completions]
        is_shown = np.repeat([prompt is not None for prompt in prompts], lengths)
        before = np.concatenate([[0], np.cumsum(is_shown)]).tolist()
        with self.logits(*map(list, zip(*rows, strict=True)), reading) as logits:

            def of(part: slice) -> ShownLogits | None:
                own = slice(before[part.start], before[part.stop])
                if own.start == own.stop:
                    return None
                if own.stop - own.start == part.stop - part.start:
                    return ShownLogits(logits(own))
                return ShownLogits(logits(own), torch.from_numpy(is_shown[part]).to(self.student.device))

            yield of

    def update(self, step: int, *, has_moved: bool = True) -> None:
        """To be called after the updates of each training step (from 1). `has_moved`: they changed the policy."""
        is_due = has_moved if self.settings.kind == "ema" else step % self.settings.every == 0
        if not self.settings.moves or not is_due:
            return
        with torch.no_grad():
            policy, own = list(trained_parameters(self.student.model).values()), list(self.state().values())
            if self.settings.kind == "ema":
                torch._foreach_lerp_(own, policy, self.settings.rate)
            else:
                for mine, theirs in zip(own, policy, strict=True):
                    mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """Weights of a teacher that moves, by name, not copied. Empty for other kinds."""
        if not self.settings.moves:
            return {}
        self.separate()
        own = dict(self.network.model.named_parameters())
        return {name: own[name] for name in trained_parameters(self.student.model)}


def _copy(model: Any, narrow: dict[int, Tensor]) -> Any:
    """A copy that shares frozen parameters with the original; those of `narrow` are bfloat16 in it."""
    own = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    own |= {key: nn.Parameter(one.detach().bfloat16(), requires_grad=False) for key, one in narrow.items()}
    return copy.deepcopy(model, memo=own)
