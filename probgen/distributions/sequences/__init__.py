"""Distributions of sequences with hidden states."""
