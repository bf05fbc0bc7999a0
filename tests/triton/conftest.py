"""Kernels imported by these tests run in Triton's interpreter, on CPU tensors. No other test may import them."""

import os

os.environ["TRITON_INTERPRET"] = "1"
