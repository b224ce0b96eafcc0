"""Names of what is measured of each judged plate (see `station.plate_features`)."""

SECTIONS = 8
"""Equal parts of the scan line whose level is held against the whole plate's."""
SCALARS = ("level", "contrast", "noise", "score", "score_high")
MAP = ("map_mean", "map_spread", "map_peak")
NAMES = (*SCALARS, *MAP, *(f"section_{number + 1}" for number in range(SECTIONS)))
"""Level: natural logarithm of the mean 8-bit level. Contrast: of the pixels' standard deviation,
less noise, over their mean. Noise: of the pixel noise's standard deviation over the level. Scores:
log odds of the tiles that pass, median and upper decile. Map: log odds that cells add, over the
tiles: median of their means, spreads and highest cells. Sections: logarithm of their level over the
plate's."""
