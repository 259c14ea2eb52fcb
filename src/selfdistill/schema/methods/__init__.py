"""The training methods as settings. A shipped method has one file here and one in training/methods/."""

from selfdistill.schema.methods.ad_opsd import AdOpsd, AnchoredSettings, EntropyAnchor
from selfdistill.schema.methods.antisd import Antisd
from selfdistill.schema.methods.base import (
    Aggregation,
    Arm,
    Method,
    MethodSettings,
    ModelDefaults,
    Teacher,
    method_class,
    method_settings,
    method_title,
    register_method,
    shipped_methods,
)
from selfdistill.schema.methods.demonstrations import DemonstrationSettings, DistillationSettings, TeacherContext
from selfdistill.schema.methods.forward_kl import ForwardKl
from selfdistill.schema.methods.grpo import Grpo, PolicySettings
from selfdistill.schema.methods.grpo_sdpo import GrpoSdpo
from selfdistill.schema.methods.purified_opsd import PurifiedOpsd
from selfdistill.schema.methods.rlcsd import Rlcsd
from selfdistill.schema.methods.rlsd import Rlsd
from selfdistill.schema.methods.sdpo import Sdpo
from selfdistill.schema.methods.sft import Sft
from selfdistill.schema.methods.srpo import Srpo

__all__ = [
    "AdOpsd",
    "Aggregation",
    "AnchoredSettings",
    "Antisd",
    "Arm",
    "DemonstrationSettings",
    "DistillationSettings",
    "EntropyAnchor",
    "ForwardKl",
    "Grpo",
    "GrpoSdpo",
    "Method",
    "MethodSettings",
    "ModelDefaults",
    "PolicySettings",
    "PurifiedOpsd",
    "Rlcsd",
    "Rlsd",
    "Sdpo",
    "Sft",
    "Srpo",
    "Teacher",
    "TeacherContext",
    "method_class",
    "method_settings",
    "method_title",
    "register_method",
    "shipped_methods",
]
