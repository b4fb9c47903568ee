"""Convolution core: operations on maps in memory, by systolic array, filter and epilogue."""
