"""Kernels imported by these tests run in Triton's interpreter, on CPU tensors. No other test may import them.

bench/gpu.sh runs the same tests on a GPU, which it names in OCTAVO_TEST_TORCH_DEVICE.
"""

import os

if os.environ.get("OCTAVO_TEST_TORCH_DEVICE", "cpu") == "cpu":
    from support.triton_interpreter import repair

    repair()
