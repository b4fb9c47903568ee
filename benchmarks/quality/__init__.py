# SPDX-License-Identifier: MIT
"""What pruning and quantisation cost in quality, on real weights: the analogue of SpAtten's Figs. 7 and 21.

Each experiment saves one JSON file per case as it finishes (``store``), so an interrupted run goes on; the
tables and plots are pure functions of the saved files.
"""
