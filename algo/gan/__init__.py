# SPDX-License-Identifier: MIT
"""Training generative adversarial networks: losses, a loop that resumes to the same bits, image sets."""
