"""Questions with the instruction of a prompt, as data sets and evaluation files have them."""

from __future__ import annotations

from selfdistill.prompts import INSTRUCTIONS, Instruction, strip_instruction


def add_instruction(text: str, kind: Instruction) -> str:
    """Wrap the instruction around a question exactly once, also where it is there already."""
    prefix, suffix = INSTRUCTIONS[kind]
    return f"{prefix}{strip_instruction(text, kind)}{suffix}"
