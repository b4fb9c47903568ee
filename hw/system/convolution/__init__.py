"""The convolution core behind AXI: registers, memory masters, lists of commands."""
