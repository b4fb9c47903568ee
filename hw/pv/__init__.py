"""Probability-times-value array (SpAtten Fig. 8 module 11)."""
