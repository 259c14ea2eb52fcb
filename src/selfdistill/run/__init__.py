"""Running one stage on this machine: launch, job, processes, GPUs, watchdog. Stages are found by name."""
