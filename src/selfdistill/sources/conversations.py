"""The problem in a list of messages: one user turn, perhaps a system turn before it, perhaps an answer after it.

What a path by index takes for the question may be the system turn in some rows. What goes before the question (a system
text, earlier turns) is part of what the model is asked, and must not be lost without a word.
"""

from __future__ import annotations

from typing import Any

from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import FieldMap
from selfdistill.sources.paths import SYSTEM_ROLES, USER_ROLES, is_conversation, look_up, role_of, walk
from selfdistill.sources.text_tables import Record


class LostTurns(Exception):
    """Earlier turns of a conversation, which a problem of one question cannot hold."""


def system_text(record: Record, fields: FieldMap) -> Any:
    """The text of the system turn before the question; None where there is no conversation or no such turn.

    Raises UserError where `fields.question` leads to a turn that is not the user's, or where a path by index loses a
    system turn; LostTurns where turns of user or assistant go before it.
    """
    steps = list(walk(record.values, fields.question))
    at = next((index for index in reversed(range(len(steps) - 1)) if is_conversation(steps[index])), None)
    if at is None:
        return None
    turns, chosen = steps[at], steps[at + 1]
    if role_of(chosen) is None:
        return None  # No such turn in this row: counted as a missing question.
    where = f"{record.where}: fields.question: `{fields.question}`"
    parts = fields.question.split(".")
    path = ".".join([*parts[:at], _user_of(turns), *parts[at + 1 :]])
    if role_of(chosen) not in USER_ROLES:
        raise UserError(
            f"{where} leads to what the {role_of(chosen)} says, not to a question. Take the turn by its role: `{path}`."
        )
    before = turns[: next(index for index, turn in enumerate(turns) if turn is chosen)]
    if any(role_of(turn) not in SYSTEM_ROLES for turn in before):
        raise LostTurns
    if not before or fields.system is not None:
        return None
    if len(before) > 1:
        raise UserError(f"{where} comes after {len(before)} system turns; name one with fields.system.")
    if parts[at].isdecimal():
        raise UserError(
            f"{where} comes after a system turn, which no field takes. Take the turn by its role, `{path}`, "
            "and the system text comes along; or name it with fields.system."
        )
    text = look_up(before[0], ".".join(parts[at + 1 :]))
    if not isinstance(text, str):
        raise UserError(f"{where} comes after a system turn without such a text; name it with fields.system.")
    return text


def _user_of(turns: list[Any]) -> str:
    return next((str(role_of(turn)) for turn in turns if role_of(turn) in USER_ROLES), USER_ROLES[0])
