# SPDX-License-Identifier: MIT
"""Anycost GAN (Lin et al., CVPR 2021): one StyleGAN2 generator that holds sub-generators of any cost."""
