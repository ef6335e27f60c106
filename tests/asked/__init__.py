"""Every public callable, one good call of each, and bad values for each of its arguments."""
