"""The operations of a step on NVIDIA GPUs (compute capability 8.0 and up), in Triton.

Each module holds kernels, the functions of the table that launch them, and `variants()`: what is compiled ahead of
time for each architecture to read registers, shared memory and spills without a GPU. With TRITON_INTERPRET=1 in the
environment before the first import, the same kernels run on CPU tensors, which is how they are tested.

Numbers that change from step to step, such as rows and sequences, are not specialised: a kernel that has run once for a
size of tile never waits for the compiler again.
"""
