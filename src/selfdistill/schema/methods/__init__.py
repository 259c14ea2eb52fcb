"""The training methods as settings. A shipped method has one file here and one in training/methods/."""

from selfdistill.schema.methods.antisd import Antisd
from selfdistill.schema.methods.base import (
    Aggregation,
    Arm,
    Method,
    MethodSettings,
    ModelDefaults,
    Teacher,
    load_module,
    method_class,
    method_settings,
    method_title,
    register_method,
    shipped_methods,
)
from selfdistill.schema.methods.demonstrations import DemonstrationSettings, TeacherContext
from selfdistill.schema.methods.grpo import Grpo, PolicySettings
from selfdistill.schema.methods.rlcsd import Rlcsd
from selfdistill.schema.methods.rlsd import Rlsd
from selfdistill.schema.methods.sdpo import Sdpo
from selfdistill.schema.methods.sft import Sft

__all__ = [
    "Antisd",
    "Aggregation",
    "Arm",
    "DemonstrationSettings",
    "Grpo",
    "Method",
    "MethodSettings",
    "ModelDefaults",
    "PolicySettings",
    "Rlcsd",
    "Rlsd",
    "Sdpo",
    "Sft",
    "Teacher",
    "TeacherContext",
    "load_module",
    "method_class",
    "method_settings",
    "method_title",
    "register_method",
    "shipped_methods",
]
