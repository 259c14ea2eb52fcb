"""Numbers of the paper (arXiv 2603.24472), as they are quoted beside ours. Fractions, tokens, words per completion.

Both tables are of DeepSeek-R1-Distill-Qwen-7B. Table 1: 100 problems of DAPO-Math-17k that it solves in one to four of
eight samples, eight samples each. Table 2: fine-tuning on 800 correct completions, mean of 16 samples. The density of
table 1 is not printed there: it is count / length.
"""

from __future__ import annotations

from typing import NamedTuple

#: The paper's model, and how the slug of its artifact is recognised.
MODEL = "DeepSeek-R1-Distill-Qwen-7B"


class Context(NamedTuple):
    """One row of table 1."""

    score: float
    length: float
    count: float

    @property
    def density(self) -> float:
        return 1000.0 * self.count / self.length


#: Table 1 by context.
RICHNESS = {
    "none": Context(0.30, 13054, 182.5),
    "solution": Context(0.98, 1873, 8.8),
    "solution_no_think": Context(0.78, 12036, 159.8),
    "regenerated": Context(0.95, 2808, 24.1),
}

#: Table 2 by arm and benchmark.
SFT = {
    "base": {"aime24": 0.5479, "aime25": 0.3792, "amc23": 0.8906, "math500": 0.9219},
    "unguided": {"aime24": 0.5104, "aime25": 0.4000, "amc23": 0.8766, "math500": 0.9093},
    "guided": {"aime24": 0.2021, "aime25": 0.1271, "amc23": 0.5703, "math500": 0.6552},
}


def is_papers_model(artifact: str) -> bool:
    """Whether an artifact (`stage/slug-key`) is the model of the two tables."""
    return artifact.startswith(f"model/{MODEL.lower()}-")
