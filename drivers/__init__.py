"""Hardware and its doubles. Knows nothing of tiles, verdicts or records."""
