"""Nodes of the plan: artifacts, finished or not, whose keys are known before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from selfdistill.artifacts.store import ROOT, make_frozen_spec, slugify
from selfdistill.files import key_of
from selfdistill.schema.stages import StageSpec


@dataclass(frozen=True, eq=False)
class Node:
    """A planned artifact: its validated spec, and the nodes that it is made from."""

    spec: StageSpec
    inputs: dict[str, Node]

    @property
    def stage(self) -> str:
        return self.spec.stage

    @cached_property
    def frozen_spec(self) -> dict:
        """What is hashed and written to spec.json."""
        return make_frozen_spec(self.stage, self.spec.identity(), dict(sorted(self.input_ids.items())))

    @cached_property
    def input_ids(self) -> dict[str, str]:
        return {role: node.id for role, node in self.inputs.items()}

    def upstream(self, role: str) -> Node:
        return self.inputs[role]

    @cached_property
    def key(self) -> str:
        return key_of(self.frozen_spec)

    @cached_property
    def slug(self) -> str:
        return slugify(self.spec.slug({role: node.slug for role, node in self.inputs.items()}))

    @cached_property
    def id(self) -> str:
        """`stage/key`: how specs refer to their inputs."""
        return f"{self.stage}/{self.key}"

    @cached_property
    def name(self) -> str:
        """`stage/slug-key`: how people and tables refer to an artifact."""
        return f"{self.stage}/{self.slug}-{self.key}"

    def folder(self, root: Path = ROOT) -> Path:
        return root / self.stage / f"{self.slug}-{self.key}"
