"""Reusable stream parts: FIFO, skid buffer, width change, packer."""
