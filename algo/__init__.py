"""The algorithms in float PyTorch."""
