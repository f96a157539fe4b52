"""Events and facts for other programs."""
