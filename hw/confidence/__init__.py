"""Progressive quantisation: decides which rows need their LSBs, and recomputes those (SpAtten module 9)."""
