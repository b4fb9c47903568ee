"""Hardware blocks: one folder each with config, rtl, golden and cycles."""
