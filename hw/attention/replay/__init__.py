# SPDX-License-Identifier: MIT
"""Registers and handshakes of the attention core's parts without their data, one cycle a step."""
