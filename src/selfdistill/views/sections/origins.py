"""What was left out without stopping, what a made world assumes, and where every number comes from."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.artifacts.store import Artifact
from selfdistill.views.lineage import SilentCount, origin, silent_counts
from selfdistill.views.sections.blocks import Cell, Section, Table, num, text
from selfdistill.views.wording import number, percent


def silent_section(artifacts: Sequence[Artifact]) -> Section:
    """Everything that was dropped, cut off or not understood; zeros are named below the table."""
    counts = silent_counts(artifacts)
    rows = [
        [text(c.stage), text(c.name), num(str(c.artifacts)), num(_shown(c, c.overall)), num(_shown(c, c.largest)),
         Cell(c.slug, keys=[("manifest", c.href)])]
        for c in counts if c.overall
    ]  # fmt: skip
    zeros = [f"{c.stage} {c.name}" for c in counts if not c.overall]
    notes = [f"Zero in every artifact: {'; '.join(zeros)}."] if zeros else []
    header = ("stage", "what", "artifacts", "sum, or mean of shares", "largest in one artifact", "which")
    lead = f"{len(rows)} of the {len(counts)} kinds of loss that the artifacts report are not zero."
    return Section("losses", "Dropped, cut off, not understood", lead, [Table(header, rows)] if rows else [], notes)


def _shown(count: SilentCount, value: float) -> str:
    return percent(value) if count.is_share else number(value) if value % 1 else f"{value:,.0f}"


def provenance_section(artifacts: Sequence[Artifact]) -> Section:
    """Every artifact behind the report, upstream ones included."""
    origins = [origin(artifact) for artifact in artifacts]
    rows = [
        [text(o.stage), text(o.slug), Cell("", keys=[(o.key, o.href)]), text(o.commit),
         num(o.date), text(", ".join(i.split("/")[0] + " " + i.split("/")[1][:6] for i in o.inputs) or "–")]
        for o in origins
    ]  # fmt: skip
    commits = sorted({o.commit for o in origins})
    made_by = f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits"
    lead = f"{len(origins)} artifacts, made by {made_by}."
    notes = ("A key is the hash of an artifact's spec; its manifest lists the digest of every file.",)
    header = ("stage", "name", "key and manifest", "commit", "finished (UTC)", "made from")
    return Section("provenance", "Where every number comes from", lead,
                   [Table(header, rows, "Show the artifacts", is_folded=True)], notes)  # fmt: skip


def assumptions_section(artifacts: Sequence[Artifact]) -> Section | None:
    """Assumed against emergent, for a study whose base model was made here; None for a given model."""
    made = [artifact for artifact in artifacts if artifact.stage == "pretrain"]
    if not made:
        return None
    mixture = made[0].frozen_spec["params"]["mixture"]
    named = [*(name for name in _MIXTURE if name in mixture), *(name for name in mixture if name not in _MIXTURE)]
    rows = [[text(_MIXTURE.get(name, name)), num(percent(mixture[name]))] for name in named]
    blocks = [Table(("assumed: what the pretraining text holds", "share"), rows)]
    return Section("assumptions", "What this small world assumes, and what emerges in it", _ASSUMED, blocks, _EMERGENT)


_MIXTURE = {
    "textbook": "pages that drill the check of one candidate",
    "with_solution": "problems with a solution in the prompt",
    "ood": "problems of families that later training never sees",
    "direct": "plain problems answered at once, without a search",
    "direct_correct": "such direct answers that are right",
    "give_up": "searches that end in a guess after a failed check",
    "full_solution_direct": "concise answers when a full solution is shown",
    "answer_only_direct": "concise answers when only the final answer is shown",
}
_ASSUMED = (
    "Some of what is seen here was put in. The base model was pretrained on made text in which it learns two ways to "
    "answer, at once or by a worded search, and in which a full solution in the prompt is followed by short, confident "
    "text and a bare answer by text about as wordy as without one. Large models bring such habits along; here they are "
    "assumptions, and so is the mildness of the context without thinking."
)
_EMERGENT = (
    "Not put in, but a result of training: that a habit which exists only with a solution in the prompt passes to the "
    "student that sees none, also in families that training never touched; that accuracy falls with it, or not; that "
    "a method memorises few problems; that GRPO searches more.",
    "Out of distribution means families that occur in pretraining but never in later training.",
    "The same rules hold for every family: no family was made to fail.",
)
