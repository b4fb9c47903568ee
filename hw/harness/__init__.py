"""Ways to run a block: Amaranth's simulator, cocotb on the Verilog, and a C++ harness without VPI."""
