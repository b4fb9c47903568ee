# SPDX-License-Identifier: MIT
"""Measurements of the generators: quality, memorisation, wall time."""
