"""The station's page: one process that reads the log, asks the others, and writes through them."""
