"""Sampling processes beside the training processes: the client that training uses, the server that it talks to."""
