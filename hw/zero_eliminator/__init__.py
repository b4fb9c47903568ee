"""Zero eliminator: packs the marked lanes of a beat to the front, order kept (SpAtten Fig. 10)."""
