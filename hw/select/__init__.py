"""Radix selection and local value selection: a second engine behind the top-k engine's streams."""
