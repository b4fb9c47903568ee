"""From a record of a model's attention to the chip's memory and descriptors, and from its outputs back."""
