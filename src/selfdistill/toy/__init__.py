"""The toy world: a laptop-sized problem family, its tokenizer and the pretraining of its base model."""
