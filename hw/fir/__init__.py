"""Separable [1, 3, 3, 1] filter of StyleGAN2: blur after a transposed convolution, and upsampling by two."""
