"""K and V from DRAM: bit planes, addresses, crossbars, width conversion (SpAtten modules 3 to 6)."""
