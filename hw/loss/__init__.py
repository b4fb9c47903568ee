# SPDX-License-Identifier: MIT
"""Gradient of label-smoothed cross entropy, of one picture's scores."""
