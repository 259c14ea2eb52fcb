"""Planning: config -> specs, keys, views, labels. Pure, and light enough for every Slurm job to load."""
