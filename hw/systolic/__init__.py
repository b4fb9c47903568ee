"""Weight-stationary systolic array for convolutions, with on-the-fly im2col."""
