"""The native CPU kernels. Arguments named as tensors are addresses (`tensor.data_ptr()`); nothing is kept of them."""

def set_num_threads(n: int) -> None: ...
def num_threads() -> int: ...
def set_isa(name: str) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...

class PackedLinear:
    def __init__(self, K: int) -> None: ...  # noqa: N803
    @property
    def N(self) -> int: ...  # noqa: N802
    @property
    def K(self) -> int: ...  # noqa: N802
    @property
    def nbytes(self) -> int: ...
    def add_int(
        self,
        values: int,
        N: int,  # noqa: N803
        bits: int,
        group: int,
        scales: int,
        mins: int,
        wide: bool,
        zero: int,
        bias: int,
    ) -> None: ...
    def add_float(self, weights: int, N: int, kind: int, bias: int) -> None: ...  # noqa: N803
    def linear(self, out: int, ldo: int, x: int, ldx: int, M: int) -> None: ...  # noqa: N803
    def gather(self, out: int, ldo: int, ids: int, M: int, scale: float) -> None: ...  # noqa: N803
