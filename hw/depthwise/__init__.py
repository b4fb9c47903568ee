"""Depthwise convolution: every channel by itself, a few multipliers for each."""
