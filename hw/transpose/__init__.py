"""Pixels and channels of a map exchanged, in blocks of as many of each as there are lanes."""
