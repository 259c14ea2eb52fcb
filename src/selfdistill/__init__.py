"""selfdistill: the study of arXiv 2603.24472 (self-distillation against GRPO) as a reproducible workflow."""

__version__ = "0.1.0"
