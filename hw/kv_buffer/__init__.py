"""Double-buffered SRAM that holds keys or values side by side in lines (SpAtten Table I)."""
