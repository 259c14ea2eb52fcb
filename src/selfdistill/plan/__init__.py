"""Planning: config -> specs, keys, views, labels. Light enough for every Slurm job to import."""
