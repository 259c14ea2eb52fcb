"""vLLM behind the sampler protocol: token ids in and out, one request and one seed for each completion.

Differences from the torch sampler: rounding, and occasionally a token, depends on the rest of the batch; random numbers
are vLLM's own, so the same seed gives another text; log-probs of *truncated* sampling are those after truncation
(training never truncates, so there the two agree). Checked against vLLM 0.32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.generation.base import Completion, OnProgress, Sampler, Weights, check_fits, not_finite
from selfdistill.generation.engine_ranks import EngineRanks
from selfdistill.generation.loading import end_token_ids
from selfdistill.generation.vllm_engine import is_in_process, ranks_of_engine, start_engine, stop_engine
from selfdistill.generation.weights import folder_in_memory, holds_head, read_weights, write_weights
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime

#: Added to the logit of a banned token; `Intervention` checks that none was sampled.
_BAN = -1e9
#: What an engine frees when it sleeps. New weights wake up the first alone.
_PARTS = {"weights", "kv_cache"}


@dataclass(frozen=True)
class _Request:
    """A completion that is being sampled; `name` is the engine's own."""

    name: str
    place: int
    sample: int


class VllmSampler(Sampler):
    """One engine that samples, takes new weights, and sleeps between calls where a trainer shares its GPU.

    Training processes that run it together all make the same calls; only the first of them is given completions.
    """

    def __init__(
        self, engine: Any, eos_token_ids: Sequence[int], *, sleeps: bool = False, ranks: EngineRanks | None = None
    ) -> None:
        self.engine = engine
        self.ranks = ranks or EngineRanks()
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.sleeps = sleeps
        self.asleep: set[str] = set()
        #: Prompt tokens requested, and those of them that were in the prefix cache.
        self.prompt_tokens, self.cached_tokens = 0, 0

    @classmethod
    def load(
        cls,
        folder: Path,
        runtime: StageRuntime,
        *,
        is_colocated: bool = False,
        max_positions: int | None = None,
        kv_cache_dtype: str = "auto",
    ) -> VllmSampler:
        """Start an engine over a model folder; arguments and errors as in `start_engine`.

        `is_colocated`: a trainer shares the GPU, so the engine frees its memory between calls. The CPU build cannot
        sleep and stays awake.
        """
        sleeps = is_colocated and runtime.device == "cuda"
        engine = start_engine(
            folder, runtime, sleeps=sleeps, max_positions=max_positions, kv_cache_dtype=kv_cache_dtype
        )
        ranks = EngineRanks(ranks_of_engine(runtime), runtime.collective_timeout_seconds)
        sampler = cls(engine, end_token_ids(folder), sleeps=sleeps, ranks=ranks)
        sampler.sleep()  # The trainer loads next.
        return sampler

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `generation.base.Sampler`. The engine gets as many prompts as it has room for."""
        one_by_one = iter([[place] for place in range(len(prompts))])
        return self.stream_portions(one_by_one, prompts, seeds, sampling, done=done, on_progress=on_progress)

    @staticmethod
    def portion(count: int, ranks: int) -> int:
        """See `generation.base.Sampler`. The engine takes a prompt while others run."""
        return 1

    def stream_portions(
        self,
        portions: Iterator[Sequence[int]],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `generation.base.Sampler`. Samples of a prompt share its prefill through the prefix cache.

        A portion is taken while fewer completions are running than the engine computes at a time, so none waits for
        the longest completion of a batch. Requests that are still running when the caller stops iterating are aborted.

        Of ranks that run the engine together, the leader takes portions for all and yields what all have sampled. If
        `on_progress` raises on one, the others end too, without an error.
        """
        sampled = self._sample(portions, prompts, seeds, sampling, done, on_progress)
        if self.ranks.is_leader:
            yield from sampled
        else:
            for _ in sampled:
                pass

    def _sample(
        self,
        portions: Iterator[Sequence[int]],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        done: Set[int],
        on_progress: OnProgress | None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        wanted = [prompt for place, prompt in enumerate(prompts) if place not in done]
        check_fits(wanted, sampling, self.engine.model_config.max_model_len)
        running: dict[str, _Request] = {}
        found: dict[int, dict[int, Completion]] = {}
        is_last = False
        try:
            while running or not is_last:
                if not is_last and len(running) < self._capacity():
                    portion = self.ranks.decide(lambda: next(portions, None))
                    is_last = portion is None
                    places = [place for place in portion or () if place not in done]
                    yield from ((place, []) for place in places if not seeds[place])
                    found |= {place: {} for place in places if seeds[place]}
                    self._submit([place for place in places if seeds[place]], prompts, seeds, sampling, running)
                elif self._step(running, found, on_progress):
                    yield from self._finished(found, seeds)
                else:
                    return
        finally:
            if running:
                self.engine.llm_engine.abort_request([request.name for request in running.values()], internal=True)
            self.sleep()

    def sleep(self) -> None:
        """See `generation.base.Sampler`; only where a trainer shares the GPU."""
        if self.sleeps and self.asleep != _PARTS:
            self.engine.sleep(level=1)
            self.asleep = set(_PARTS)

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
            with folder_in_memory() as folder:
                write_weights(weights, Path(folder))
                self._take(weights_path=folder)

    def _take(self, **source: Any) -> None:
        """Load weights and clear the prefix cache, which belongs to the old ones."""
        self._wake("weights")
        self.engine.collective_rpc("reload_weights", kwargs=source)
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache of the old weights: a request is still running.")

    def _capacity(self) -> int:
        """Completions that the engine is given at a time, so that the key-value cache seldom runs out of room.

        Running completions are on average half done, so each occupies half of the longest sequence at most.
        """
        config = self.engine.llm_engine.vllm_config
        cached_tokens = config.cache_config.num_gpu_blocks * config.cache_config.block_size
        fitting = 2 * cached_tokens // self.engine.model_config.max_model_len
        return max(1, min(config.scheduler_config.max_num_seqs, fitting))

    def _submit(
        self,
        places: Sequence[int],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        running: dict[str, _Request],
    ) -> None:
        """Add one request for each completion to the engine and to `running`."""
        from vllm.inputs import TokensPrompt

        if places:
            self._wake("weights", "kv_cache")
        for place in places:
            for sample, seed in enumerate(seeds[place]):
                name = self.engine.llm_engine.add_request(
                    f"{place}-{sample}",
                    TokensPrompt(prompt_token_ids=list(prompts[place])),
                    self._parameters(sampling, seed),
                )
                running[f"{place}-{sample}"] = _Request(name, place, sample)

    def _step(
        self,
        running: dict[str, _Request],
        found: dict[int, dict[int, Completion]],
        on_progress: OnProgress | None,
    ) -> bool:
        """One step of the engine; moves what has ended from `running` to `found`. False where another rank stops."""
        ended = [output for output in self.engine.llm_engine.step() if output.finished]
        tokens = 0
        for output in ended:
            request = running.pop(output.request_id)
            found[request.place][request.sample] = completion = self._completion(output)
            tokens += len(completion.token_ids)
            self.prompt_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens or 0
        goes_on = False
        try:
            if on_progress is not None:
                on_progress(len(ended), tokens)
            goes_on = True
        finally:
            is_stopped = self.ranks.any(not goes_on)
        return not is_stopped

    @staticmethod
    def _finished(
        found: dict[int, dict[int, Completion]], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Take the prompts of which all completions have ended."""
        for place in [place for place, group in found.items() if len(group) == len(seeds[place])]:
            group = found.pop(place)
            yield place, [group[sample] for sample in range(len(seeds[place]))]

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        try:
            return SamplingParams(
                n=1,
                seed=seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                logprobs=0,
                stop_token_ids=self.eos_token_ids,
                logit_bias=dict.fromkeys(self.banned, _BAN) or None,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        except ValueError as error:
            raise UserError(f"sampling: vLLM refuses it ({error}): change it, or use engine: torch.") from None

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
