"""Training, export and evaluation of the networks; needs the `train` extra, never imported by the
station."""
