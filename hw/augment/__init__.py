# SPDX-License-Identifier: MIT
"""DiffAugment's unit: colour, translation and cutout of images in one pass, and the adjoint of all three."""
