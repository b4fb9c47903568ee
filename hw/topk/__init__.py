"""Top-k engine: quick-select over P lanes (SpAtten Alg. 3, Figs. 9 and 10)."""
