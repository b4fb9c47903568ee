"""The chip as numbers: workloads, cycles, memory traffic, energy, baselines."""
