"""Importance of tokens and heads, accumulated over a sentence (SpAtten Fig. 8, modules 1 and 12)."""
