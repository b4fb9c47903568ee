"""From 32-bit sums to 8- or 16-bit maps: scale, bias, noise or residual, activation, scale of the reader."""
