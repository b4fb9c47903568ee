"""What a training step needs beside products: group norm forward and backward from sums, the update."""
