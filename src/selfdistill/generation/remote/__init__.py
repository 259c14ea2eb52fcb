"""Separate sampling processes of a training: client (used by training), server, and starting and ending them."""
