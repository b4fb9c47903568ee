# SPDX-License-Identifier: MIT
"""TinyTL measured: memory of a training step, transfer to packaged pictures, classification."""
