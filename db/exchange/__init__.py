"""Events from and for other programs, and traces packed."""
