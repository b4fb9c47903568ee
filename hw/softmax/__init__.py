"""Softmax of one row of scores at a time, in fixed point (SpAtten Fig. 8, module 8)."""
