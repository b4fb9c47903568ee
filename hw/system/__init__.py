"""The attention core behind AXI: registers, memory masters, jobs."""
