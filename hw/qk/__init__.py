"""Query-times-key array (SpAtten Fig. 8 module 7, Fig. 11)."""
