"""A GenTL producer in C that simulates line-scan cameras; see README.md in this folder."""
