"""What several stages use: sampling from a finished model, part files, model folders, the sampler of a training."""
