"""Laws of sequences with hidden states."""
