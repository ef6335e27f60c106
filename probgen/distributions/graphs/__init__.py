"""Laws that factorise along a graph."""
