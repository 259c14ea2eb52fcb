"""What several stages share: sampling from a finished model, part files, model folders."""
