"""The native CPU kernels. Arguments named as tensors are addresses (`tensor.data_ptr()`); only Program keeps any."""

from collections.abc import Sequence

_Routing = tuple[int, bool, float, int, int, int, float]

def set_num_threads(n: int) -> None: ...
def num_threads() -> int: ...
def set_isa(name: str) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...

class BlockFormat:
    """How blocks hold their values (csrc/cpu/block_format.h). ValueError where the fields do not fit the block."""

    def __init__(
        self,
        block_values: int,
        block_bytes: int,
        fields: Sequence[tuple[int, int, int, int, int]],
        flip: int,
        table: Sequence[int],
    ) -> None: ...
    def row_bytes(self, K: int) -> int: ...
    def unpack(self, values: int, data: int, rows: int, N: int, K: int) -> None: ...

class PackedLinear:
    def __init__(self, K: int) -> None: ...
    @property
    def N(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def add_int(
        self,
        values: int,
        format: BlockFormat | None,
        rows: int,
        N: int,
        bits: int,
        group: int,
        form: int,
        scales: int,
        mins: int,
        factors: int,
        min_factors: int,
        zero: int,
        bias: int,
    ) -> None: ...
    def add_float(self, weights: int, N: int, kind: int, bias: int) -> None: ...
    def add_fixed(self, weights: int, N: int, bias: int) -> None: ...
    def add_table(self, codes: int, N: int, group: int, scales: int, table: int, bias: int) -> None: ...
    def set_order(self, order: int) -> None: ...
    def linear(self, out: int, ldo: int, x: int, ldx: int, M: int) -> None: ...
    def gather(self, out: int, ldo: int, ids: int, M: int, scale: float) -> None: ...

class LoraBank:
    """The adapters of a product [N, K] by slots; the addresses stay the caller's."""

    def __init__(self, N: int, K: int, num_slots: int) -> None: ...
    def put(
        self,
        slot: int,
        type: int,
        parts: list[tuple[int, int, int, int, int, float]],  # first, columns, rank, a, b, scaling
        scale: int,
        shift: int,
    ) -> None: ...
    def clear(self, slot: int) -> None: ...
    def add(self, out: int, x: int, slots: int, rows: int) -> None: ...
    @property
    def N(self) -> int: ...
    @property
    def K(self) -> int: ...

class Program:
    """Records of operations (csrc/cpu/program.h). Buffers, caches and groups are named by number."""

    def __init__(self) -> None: ...
    def embed(self, weight: PackedLinear, *, out: int, scale: float, of_positions: bool, num_known: int) -> None: ...
    def given_rows(self, *, out: int, width: int) -> None: ...
    def linear(self, weight: PackedLinear, *, out: int, x: int) -> None: ...
    def lora_delta(self, bank: LoraBank, *, out: int, x: int) -> None: ...
    def norm(self, *, out: int, x: int, weight: int, bias: int, width: int, eps: float, layer_norm: bool) -> None: ...
    def norm_parts(
        self,
        *,
        x: int,
        row_width: int,
        first: int,
        count: int,
        width: int,
        weight: int,
        bias: int,
        has_own: bool,
        eps: float,
        layer_norm: bool,
    ) -> None: ...
    def add(self, *, residual: int, x: int, width: int) -> None: ...
    def add_norm(
        self, *, out: int, residual: int, x: int, weight: int, bias: int, width: int, eps: float, layer_norm: bool
    ) -> None: ...
    def clip(self, *, x: int, width: int, limit: float) -> None: ...
    def multiply(self, *, x: int, width: int, factors: int, has_one: bool) -> None: ...
    def match_rms(self, *, x: int, to: int, width: int) -> None: ...
    def cut_gates(self, *, x: int, row_width: int, width: int, deviations: float) -> None: ...
    def altup_predict(self, *, streams: list[int], width: int, scores: int, coefs: int) -> None: ...
    def altup_correct(
        self,
        *,
        streams: list[int],
        width: int,
        scores: int,
        coefs: int,
        out: int,
        activated: int,
        active: int,
        scale: int,
    ) -> None: ...
    def act_times(self, *, out: int, x: int, y: int, width: int, y_width: int, first: int, kind: int) -> None: ...
    def rope_write(
        self,
        *,
        qkv: int,
        heads: tuple[int, int, int],
        cache: int,
        group: int,
        rotation: int,
        q_norm: int,
        k_norm: int,
        eps: float,
        norms_rotated: bool,
        q_scales: int,
        k_scale: float,
        v_scale: float,
        rotations: int,
        places: int,
    ) -> None: ...
    def attend(
        self,
        *,
        out: int,
        qkv: int,
        row_stride: int,
        heads: tuple[int, int, int],
        cache: int,
        group: int,
        window: int,
        chunked: bool,
        scale: float,
        k_scale: float,
        v_scale: float,
        softcap: float,
        slopes: int,
        biases: int,
        reach: int,
        sinks: int,
        causal: bool,
        reads_key_ends: bool,
        of_encoder: bool,
        blocks: tuple[int, int, int, int],
    ) -> None: ...
    def causal_conv(
        self, *, out: int, x: int, state: int, width: int, taps: int, weight: int, bias: int, gated: bool
    ) -> None: ...
    def selective_scan(
        self,
        *,
        out: int,
        x: int,
        dt: int,
        gate: int,
        b: int,
        c: int,
        state: int,
        width: int,
        size: int,
        heads: int,
        groups: int,
        a_log: int,
        d: int,
    ) -> None: ...
    def gated_delta(
        self,
        *,
        out: int,
        qkv: int,
        gates: int,
        a_log: int,
        state: int,
        num_heads: int,
        num_key_heads: int,
        key_dim: int,
        value_dim: int,
        tiled: bool,
        beta_scale: float,
    ) -> None: ...
    def gate(self, *, x: int, gates: int, width: int, silu: bool) -> None: ...
    def head_linear(self, weights: list[PackedLinear], *, out: int, x: int, out_width: int, x_width: int) -> None: ...
    def latent_write(
        self,
        *,
        q_latent: int,
        q: int,
        kv: int,
        latent: tuple[int, int, int, int],
        cache: int,
        group: int,
        rotation: int,
        norm: int,
        eps: float,
    ) -> None: ...
    def latent_attend(
        self, *, out: int, q_latent: int, latent: tuple[int, int, int, int], cache: int, group: int, scale: float
    ) -> None: ...
    def act(self, *, out: int, x: int, width: int, kind: int, gated: bool, parameters: int) -> None: ...
    def route(
        self,
        *,
        ids: int,
        weights: int,
        scores: int,
        num_experts: int,
        top_k: int,
        routing: _Routing,
        bias: int,
        scales: int,
    ) -> None: ...
    def experts(
        self,
        gate_up_weights: list[PackedLinear],
        down_weights: list[PackedLinear],
        *,
        out: int,
        x: int,
        ids: int,
        weights: int,
        places: int,
        grouped: int,
        gate_up: int,
        act: int,
        top_k: int,
        width: int,
        inner: int,
        kind: int,
        gated: bool,
        scales_input: bool,
    ) -> None: ...
    def add_gated(self, *, residual: int, x: int, gates: int, width: int) -> None: ...
    def keep_rows(self, *, rows: list[int], widths: list[int]) -> None: ...
    def gather_rotation(
        self, *, out: int, places: int, rotation: int, head_dim: int, runs: list[tuple[int, int, int]]
    ) -> None: ...
    def set_position_parts(self, *, parts: int) -> None: ...
    def replace_rows(self, *, x: int, width: int, first: int, adds: bool) -> None: ...
    def merge_rows(self, *, out: int, x: int, width: int, count: int, mean: bool, turns: bool) -> None: ...
    def set_replaced_rows(self, *, rows: int, index: int, count: int, stride: int) -> None: ...
    def set_states(self, addresses: list[int]) -> None: ...
    def set_buffers(self, addresses: list[int]) -> None: ...
    def set_caches(self, caches: list[tuple[int, int, int, int]], cache_type: int, block_size: int) -> None: ...
    def run(
        self,
        rows: int,
        token_ids: int,
        positions: int,
        seq_lens: int,
        query_start_loc: int,
        num_seqs: int,
        groups: list[tuple[int, int, int]],
        state_slots: int,
        input_rows: int,
        key_ends: int,
        encoder_lens: int,
        needed: int,
        num_needed: int,
        adapter_slots: int,
    ) -> None: ...

def rms_norm(out: int, x: int, weight: int, rows: int, width: int, eps: float, /) -> None: ...
def add_rms_norm(out: int, residual: int, x: int, weight: int, rows: int, width: int, eps: float, /) -> None: ...
def layer_norm(out: int, x: int, weight: int, bias: int, rows: int, width: int, eps: float, /) -> None: ...
def add_layer_norm(
    out: int, residual: int, x: int, weight: int, bias: int, rows: int, width: int, eps: float, /
) -> None: ...
def add(residual: int, x: int, count: int, /) -> None: ...
def clip(x: int, count: int, limit: float, /) -> None: ...
def multiply(x: int, factors: int, has_one: bool, rows: int, width: int, /) -> None: ...
def match_rms(x: int, to: int, rows: int, width: int, /) -> None: ...
def cut_gates(x: int, rows: int, row_width: int, width: int, deviations: float, /) -> None: ...
def altup_predict(streams: list[int], scores: int, coefs: int, rows: int, width: int, /) -> None: ...
def altup_correct(
    streams: list[int],
    scores: int,
    coefs: int,
    rows: int,
    width: int,
    out: int,
    activated: int,
    active: int,
    scale: int,
    /,
) -> None: ...
def act_times(out: int, x: int, y: int, y_stride: int, rows: int, width: int, kind: int, /) -> None: ...
def act_mul(out: int, gate_up: int, rows: int, width: int, kind: int, /) -> None: ...
def act(out: int, x: int, rows: int, width: int, kind: int, parameters: int, /) -> None: ...
def norm_parts(
    x: int,
    rows: int,
    row_width: int,
    first: int,
    count: int,
    width: int,
    weight: int,
    bias: int,
    has_own: bool,
    eps: float,
    layer_norm: bool,
    /,
) -> None: ...
def route(
    ids: int,
    weights: int,
    scores: int,
    bias: int,
    scales: int,
    rows: int,
    num_experts: int,
    top_k: int,
    routing: _Routing,
    /,
) -> None: ...
def add_gated(residual: int, x: int, gates: int, rows: int, width: int, /) -> None: ...
def rope_kv_write(
    qkv: int,
    positions: int,
    cos_sin: int,
    q_norm: int,
    k_norm: int,
    eps: float,
    k_cache: int,
    v_cache: int,
    k_stride: int,
    v_stride: int,
    cache_type: int,
    block_size: int,
    slots: int,
    rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    norms_rotated: bool,
    q_scales: int,
    k_scale: float,
    v_scale: float,
    /,
) -> None: ...
def gate(x: int, gates: int, count: int, silu: bool, /) -> None: ...
def gated_delta(
    out: int,
    qkv: int,
    gates: int,
    a_log: int,
    state: int,
    slots: int,
    positions: int,
    query_start_loc: int,
    num_seqs: int,
    num_heads: int,
    num_key_heads: int,
    key_dim: int,
    value_dim: int,
    tiled: bool,
    beta_scale: float,
    /,
) -> None: ...
def selective_scan(*addresses_and_sizes: int) -> None: ...
def causal_conv(
    out: int,
    x: int,
    weight: int,
    bias: int,
    state: int,
    slots: int,
    positions: int,
    query_start_loc: int,
    num_seqs: int,
    width: int,
    taps: int,
    gated: bool,
    /,
) -> None: ...
def latent_write(
    q_latent: int,
    q: int,
    kv: int,
    positions: int,
    cos_sin: int,
    norm: int,
    eps: float,
    cache: int,
    stride: int,
    cache_type: int,
    block_size: int,
    slots: int,
    rows: int,
    num_heads: int,
    nope_dim: int,
    rank: int,
    rope_dim: int,
    /,
) -> None: ...
def latent_attention(
    out: int,
    q_latent: int,
    cache: int,
    stride: int,
    cache_type: int,
    block_size: int,
    block_tables: int,
    block_table_stride: int,
    seq_lens: int,
    query_start_loc: int,
    num_seqs: int,
    num_heads: int,
    rank: int,
    rope_dim: int,
    scale: float,
    /,
) -> None: ...
def attention(
    out: int,
    qkv: int,
    k_cache: int,
    v_cache: int,
    k_stride: int,
    v_stride: int,
    cache_type: int,
    block_size: int,
    block_tables: int,
    block_table_stride: int,
    seq_lens: int,
    query_start_loc: int,
    num_seqs: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    k_scale: float,
    v_scale: float,
    window: int,
    chunked: bool,
    softcap: float,
    slopes: int,
    biases: int,
    reach: int,
    sinks: int,
    row_stride: int,
    causal: bool,
    key_ends: int,
    blocks: tuple[int, int, int, int],
    /,
) -> None: ...
def forbid(logits: int, vocab: int, rows: int, masks: int, num_masks: int, num_words: int, /) -> None: ...
def sample(
    logits: int,
    rows: int,
    vocab: int,
    ids: int,
    flags: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    seeds: int,
    positions: int,
    penalties: tuple[int, int, int, int, int, int, int] | None,
    bias: tuple[int, int, int] | None,
    masks: tuple[int, int] | None,
) -> None: ...
def logprobs(
    logits: int,
    rows: int,
    vocab: int,
    ids: int,
    k: int,
    logprob: int,
    rank: int,
    top_ids: int,
    top_logprobs: int,
    /,
) -> None: ...

# What the machine can do at best with all threads of the pool; the caller takes the time.
def read_memory(memory: int, num_bytes: int) -> None:
    """Read `num_bytes`, a multiple of 256."""

def multiply_add(steps: int) -> int:
    """Float32 multiply-adds; the value is how many operations all threads did, two each."""

def dot_int8(steps: int) -> int:
    """Dot products of bytes; the value is how many operations all threads did."""
