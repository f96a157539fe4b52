"""What a trace says without a replay: address spaces over time, phases, who writes tables."""
