"""Numbers in, numbers out. Knows nothing of cameras or records."""
