"""Whether a trace is right: its invariants, its tables rebuilt, one capture against another."""
