"""vLLM behind the sampler protocol: token ids in and out, one request and one seed for each completion.

Differences from the torch sampler: rounding, and occasionally a token, depends on the rest of the batch; random numbers
are vLLM's own, so the same seed gives another text; log-probs of *truncated* sampling are those after truncation
(training never truncates, so there the two agree). Checked against vLLM 0.32.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from selfdistill.generation.base import Completion, OnProgress, Sampler, Weights, check_fits, not_finite
from selfdistill.generation.loading import end_token_ids
from selfdistill.generation.vllm_engine import is_in_process, start_engine, stop_engine
from selfdistill.generation.weights import folder_in_memory, holds_head, read_weights, write_weights
from selfdistill.schema.common import Sampling
from selfdistill.schema.runtime import StageRuntime


class VllmSampler(Sampler):
    """One engine that samples, takes new weights, and sleeps between calls where a trainer shares its GPU."""

    def __init__(self, engine: Any, eos_token_ids: Sequence[int], *, sleeps: bool = False) -> None:
        self.engine = engine
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.sleeps = sleeps
        self.asleep: set[str] = set()
        #: Prompt tokens requested, and those of them that were in the prefix cache.
        self.prompt_tokens, self.cached_tokens = 0, 0

    @classmethod
    def load(
        cls, folder: Path, runtime: StageRuntime, *, is_colocated: bool = False, max_positions: int | None = None
    ) -> VllmSampler:
        """Start an engine over a model folder; arguments and errors as in `start_engine`.

        `is_colocated`: a trainer shares the GPU, so the engine frees its memory between calls. The CPU build cannot
        sleep and stays awake.
        """
        sleeps = is_colocated and runtime.device == "cuda"
        engine = start_engine(folder, runtime, sleeps=sleeps, max_positions=max_positions)
        return cls(engine, end_token_ids(folder), sleeps=sleeps)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `generation.base.Sampler`. Samples of a prompt share its prefill through the prefix cache.

        All prompts are in the engine at once, so none waits for the longest completion of a batch. Requests that are
        still running when the caller stops iterating are aborted.
        """
        wanted = [index for index in range(len(prompts)) if index not in done]
        check_fits([prompts[index] for index in wanted], sampling, self.engine.model_config.max_model_len)
        yield from ((index, []) for index in wanted if not seeds[index])
        running = [index for index in wanted if seeds[index]]
        if not running:
            return
        self._wake("weights", "kv_cache")
        places = self._submit(running, prompts, seeds, sampling)
        try:
            yield from self._finished(places, {index: len(seeds[index]) for index in running}, on_progress)
        finally:
            if places:
                self.engine.llm_engine.abort_request(list(places), internal=True)
            if self.sleeps:
                self.engine.sleep(level=1)
                self.asleep = {"weights", "kv_cache"}

    def update_weights(self, weights: Weights) -> None:
        """See `generation.base.Sampler`; the architecture must be the same."""
        self._reload(weights())

    def load_weights(self, folder: Path) -> None:
        """See `generation.base.Sampler`; vLLM's workers in other processes read the folder themselves."""
        if is_in_process(self.engine) or not holds_head(folder):
            self._reload(read_weights(folder))
        else:
            self._take(weights_path=str(folder))

    def close(self) -> None:
        """Free the engine's memory, so that another one can be started."""
        stop_engine(self.engine)

    def _reload(self, weights: Iterator[tuple[str, Any]]) -> None:
        """Replace the weights: as tensors, or through a folder where the engine runs in other processes.

        The output matrix is included even where it is tied to the embedding: without it the CPU build keeps the old
        one and samples from a mixture of both models.
        """
        if is_in_process(self.engine):
            self._take(weights_iterator=weights)
        else:
            folder = folder_in_memory()
            try:
                write_weights(weights, folder)
                self._take(weights_path=str(folder))
            finally:
                shutil.rmtree(folder)

    def _take(self, **source: Any) -> None:
        """Load weights and clear the prefix cache, which belongs to the old ones."""
        self._wake("weights")
        self.engine.collective_rpc("reload_weights", kwargs=source)
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache of the old weights: a request is still running.")

    def _submit(
        self,
        indices: Sequence[int],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> dict[str, tuple[int, int]]:
        """Add one request for each completion; returns (prompt, sample) by the engine's own request ID."""
        from vllm.inputs import TokensPrompt

        places: dict[str, tuple[int, int]] = {}
        for index in indices:
            for sample, seed in enumerate(seeds[index]):
                name = self.engine.llm_engine.add_request(
                    f"{index}-{sample}",
                    TokensPrompt(prompt_token_ids=list(prompts[index])),
                    self._parameters(sampling, seed),
                )
                places[name] = (index, sample)
        return places

    def _finished(
        self, places: dict[str, tuple[int, int]], missing: dict[int, int], on_progress: OnProgress | None
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Prompts as all of their completions finish; `places` keeps the requests that are still running."""
        found: dict[int, dict[int, Completion]] = {index: {} for index in missing}
        inside = {f"{index}-{sample}": name for name, (index, sample) in places.items()}
        while places:
            ended = [output for output in self.engine.llm_engine.step() if output.finished]
            tokens = 0
            for output in ended:
                index, sample = places.pop(inside[output.request_id])
                found[index][sample] = completion = self._completion(output)
                tokens += len(completion.token_ids)
                self.prompt_tokens += len(output.prompt_token_ids)
                self.cached_tokens += output.num_cached_tokens or 0
            if on_progress is not None:
                on_progress(len(ended), tokens)
            for index in [index for index, group in found.items() if len(group) == missing[index]]:
                group = found.pop(index)
                yield index, [group[sample] for sample in range(missing[index])]

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=1,
            seed=seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            logprobs=0,
            stop_token_ids=self.eos_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: Any) -> Completion:
        """The completion of a request; its log-probs include the sampled token at every position."""
        (sampled,) = output.outputs
        ids = list(sampled.token_ids)
        logprobs = [position[token].logprob for token, position in zip(ids, sampled.logprobs, strict=True)]
        if any(map(math.isnan, logprobs)):
            raise not_finite("vLLM")
        is_ended = sampled.finish_reason == "stop"
        if sampled.finish_reason not in ("stop", "length") or (is_ended and ids[-1] not in self.eos_token_ids):
            raise RuntimeError(
                f"vLLM ended a completion for the reason {sampled.finish_reason!r} at token {ids[-1:]}; end tokens are "
                f"{self.eos_token_ids}"
            )
        return Completion(ids, logprobs, "eos" if is_ended else "length")

    def _wake(self, *parts: str) -> None:
        sleeping = [part for part in parts if part in self.asleep]
        if sleeping:
            self.engine.wake_up(tags=sleeping)
            self.asleep -= set(sleeping)
