"""What a journal says: facts, each with its definition, by whatever it is grouped."""
