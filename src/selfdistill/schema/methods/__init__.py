"""The training methods as settings. A shipped method has one file here and one in training/methods/."""

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
from selfdistill.schema.methods.grpo import Grpo
from selfdistill.schema.methods.sdpo import Sdpo
from selfdistill.schema.methods.sft import Sft

__all__ = [
    "Aggregation",
    "Arm",
    "DemonstrationSettings",
    "Grpo",
    "Method",
    "MethodSettings",
    "ModelDefaults",
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
