"""Samplers behind one small protocol: plain torch with a KV cache, and vLLM."""

from selfdistill.generation.base import Completion, Sampler, sample_seed

__all__ = ["Completion", "Sampler", "sample_seed"]
