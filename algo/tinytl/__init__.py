# SPDX-License-Identifier: MIT
"""TinyTL (Cai et al., NeurIPS 2020): transfer learning with little memory, in float PyTorch."""
