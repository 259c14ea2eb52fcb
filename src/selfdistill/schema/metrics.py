"""The numbers that training writes for each step (metrics.jsonl, MLflow, results/curves), each with its meaning."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One number of a step. `name` may end in `*`; `written_by` says under which settings it exists."""

    name: str
    written_by: str
    description: str


_ALL, _SAMPLED, _SHOWN, _EVALUATION = "all", "methods that sample", "methods with a teacher context", "`evaluation`"

METRICS = (
    Metric("step", _ALL, "Training step, from 1."),
    Metric("reward_mean", _SAMPLED, "Mean reward of the step's rollouts: the training score."),
    Metric("completion_tokens_mean", _ALL, "Tokens per completion."),
    Metric("truncation_rate", _SAMPLED, "Share of rollouts cut off at the token limit."),
    Metric("unparsed_share", _SAMPLED, "Share of rollouts without a readable answer."),
    Metric("timeout_share", _SAMPLED, "Share of rollouts whose grading took too long."),
    Metric("unreadable_gold_share", _SAMPLED, "Share of rollouts whose gold answer nothing can read."),
    Metric("usable_group_share", _SAMPLED, "Share of groups in which some rollout has a gradient."),
    Metric("epistemic_count_mean", _SAMPLED, "Epistemic words per rollout, counted anywhere in the text."),
    Metric("epistemic_density_per_1k_tokens", _SAMPLED, "Epistemic words per 1,000 tokens."),
    Metric("demonstration_share", _SHOWN, "Share of rollouts whose teacher is shown a demonstration or feedback."),
    Metric("teacher_prompt_truncated_share", _SHOWN, "Of those, the share whose demonstration was cut to fit."),
    Metric("stripped_share", _SHOWN, "Of those, the share from which thinking was removed."),
    Metric("leaked_thinking_share", _SHOWN, "Of those, the share in which thinking is left after stripping."),
    Metric("overlong_penalty_mean", "`overlong_buffer`", "Mean of what is taken from the rewards of long completions."),
    Metric("masked_truncated_share", "`mask_truncated`", "Share of rollouts without a loss, since they were cut off."),
    Metric("regenerated", "`context: regenerated`", "Demonstrations of the step that the policy wrote anew."),
    Metric("regenerated_reward_mean", "`context: regenerated`", "Mean reward of what it wrote."),
    Metric("regenerated_tokens_mean", "`context: regenerated`", "Tokens per text that it wrote."),
    Metric("regenerated_truncation_rate", "`context: regenerated`", "Share of it that was cut off at the token limit."),
    Metric("groups_drawn", "`refill_rounds`", "Groups sampled in the step, replaced ones included."),
    Metric("groups_with_signal", "`refill_rounds`", "Groups of the step's updates in which some rollout has a signal."),
    Metric("refill_rounds_used", "`refill_rounds`", "Rounds in which groups were replaced."),
    Metric(
        "kept_reward_mean", "`refill_rounds`", "Mean reward of the groups learnt from; reward_mean is of all drawn."
    ),
    Metric("teacher_tokens", "methods with a second network", "Tokens it read, prompts included, in all passes."),
    Metric("supervised_tokens", _ALL, "Tokens that were forwarded for a gradient."),
    Metric("loss", _ALL, "Loss, mean over the updates of the step."),
    Metric("grad_norm", _ALL, "Norm of the gradient before clipping, mean over the updates."),
    Metric("skipped_updates", "`bad_update: skip`", "Updates left out, since their gradient was not finite."),
    Metric("entropy_mean", _ALL, "Entropy of the policy over the forwarded tokens, in nats."),
    Metric("sampler_gap", _SAMPLED, "Mean absolute difference of log-probs between trainer and sampler, in nats."),
    Metric("teacher_gap_epistemic", _SHOWN, "log T - log S at the sampled token, mean over epistemic words."),
    Metric(
        "teacher_gap_other", _SHOWN, "The same over all other tokens. Negative: the teacher finds them less likely."
    ),
    Metric("reference_kl", "`kl_coefficient` above 0", "Estimate of KL(policy || initial policy) per token, in nats."),
    Metric("method_*", "some methods", "What only this method measures, such as whether its gate is open."),
    Metric("evaluation_avg_at_k", _EVALUATION, "Share of correct completions of the benchmark."),
    Metric("evaluation_mean_length", _EVALUATION, "Tokens per completion of the benchmark."),
    Metric("evaluation_truncation_rate", _EVALUATION, "Share of them cut off at the token limit."),
    Metric("evaluation_unparsed_share", _EVALUATION, "Share of them without a readable answer."),
    Metric("evaluation_timeout_share", _EVALUATION, "Share of them whose grading took too long."),
    Metric("evaluation_unreadable_gold_share", _EVALUATION, "Share of them whose gold answer nothing can read."),
    Metric("evaluation_epistemic_density_per_1k_tokens", _EVALUATION, "Their epistemic words per 1,000 tokens."),
    Metric("learning_rate", _ALL, "Learning rate of the step; the first warm-up step has 0."),
    Metric("tokens_per_second", _ALL, "Completion tokens of the step over its seconds."),
    Metric("seconds_step", _ALL, "Seconds of the whole step, without checkpoint and resume state."),
    Metric(
        "seconds_*",
        "each phase that ran",
        "Seconds of one phase: sampling, grading, contexts, updates, writing (what is left of it after the updates), "
        "weights (to the sampler), evaluation, state (before the step: writing the resume state of the step before; "
        "sharded weights are only copied, when the state before is written).",
    ),
    Metric("peak_memory_mb", _ALL, "Highest memory so far: of the process on a CPU, of tensors on a GPU (MiB)."),
)
