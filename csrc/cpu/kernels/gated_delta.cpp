#include "kernels/gated_delta.h"

#include "kernels/channels.h"
#include "kernels/rms.h"

// Columns of a state go from token to token by themselves, so that a row's bits depend neither on how a prompt was cut nor on
// how columns are divided among tasks: every sum runs over the rows of the state in their order.
//
// With the decay d, the key k and the query q of a token, and S its state before:
//     delta = beta (v - d (k S)),  S = d S + k delta,  out = q S.
// The pass that writes S also sums what the token behind it asks of it, k S: one load and one store a value and token.

namespace octavo {
namespace OCTAVO_ISA {

// Vectors of columns of one task: as many sums of each kind as fit the registers.
constexpr int kVectors = 4;
constexpr int kColumns = kVectors * VW;
constexpr float kEps = 1e-6f;  // under the root of a length
// Rows of a state that a sequence of one row reads before the next columns of them.
constexpr int kTileRows = 16;
constexpr int kLine = 16;  // floats of a line of the cache
constexpr int64_t kGateFloats = 16384;

// What a head knows of a token beside its values: the decay, beta, and q and k at length 1, q also divided by the root of its
// size.
struct Token {
    float decay, beta;
    float *q, *k;  // [key_dim]
};

static float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

static void scale(float* out, const float* x, float by, int width) {
    for (int i = 0; i < width; ++i) out[i] = x[i] * by;
}

static void read_token(const GatedDeltaArgs& args, int row, int h, Token& token) {
    const int heads = args.num_heads, key_heads = args.num_key_heads, dim = args.key_dim;
    const int key_head = args.tiled ? h % key_heads : h / (heads / key_heads);
    const float* q = args.qkv + int64_t(row) * (2 * key_heads * dim + heads * args.value_dim) + key_head * dim;
    const float *k = q + key_heads * dim, *gates = args.gates + int64_t(row) * 2 * heads;
    // 1 / sqrt(sum + eps), of a function that knows the mean.
    const float root = 1.0f / sqrtf(float(dim));
    scale(token.q, q, inverse_rms(q, dim, kEps / float(dim)) * root * root, dim);
    scale(token.k, k, inverse_rms(k, dim, kEps / float(dim)) * root, dim);
    token.beta = args.beta_scale / (1.0f + expf(-gates[h]));
    token.decay = expf(-expf(args.a_log[h]) * softplus(gates[heads + h]));
}

// The first n of kColumns floats; the others are 0, and are neither read nor written.
template <bool IsWhole = false>
OCTAVO_INLINE void load_columns(vf* to, const float* p, int n) {
    for (int j = 0; j < kVectors; ++j) {
        const int left = n - j * VW;
        to[j] = IsWhole || left >= VW ? vf_load(p + j * VW) : left > 0 ? vf_load_n(p + j * VW, left, 0.0f) : vf_zero();
    }
}
template <bool IsWhole = false>
OCTAVO_INLINE void store_columns(float* p, const vf* from, int n) {
    for (int j = 0; j < kVectors; ++j) {
        const int left = n - j * VW;
        if (IsWhole || left >= VW) vf_store(p + j * VW, from[j]);
        else if (left > 0) vf_store_n(p + j * VW, from[j], left);
    }
}

// S = d S + k delta; out = q S; asked = next_k S, where there is a next token.
template <bool HasNext>
static void pass(float* state, const Token& token, const float* next_k, const vf* delta, vf* out, vf* asked, int dim) {
    const vf decay = vf_set(token.decay);
    vf sums[kVectors], next[kVectors], added[kVectors];
    for (int j = 0; j < kVectors; ++j) sums[j] = next[j] = vf_zero(), added[j] = delta[j];
    for (int i = 0; i < dim; ++i) {
        const vf k = vf_set(token.k[i]), q = vf_set(token.q[i]);
        for (int j = 0; j < kVectors; ++j) {
            float* place = state + i * kColumns + j * VW;
            const vf s = vf_fma(k, added[j], vf_mul(decay, vf_load(place)));
            vf_store(place, s);
            sums[j] = vf_fma(q, s, sums[j]);
            if (HasNext) next[j] = vf_fma(vf_set(next_k[i]), s, next[j]);
        }
    }
    for (int j = 0; j < kVectors; ++j) {
        out[j] = sums[j];
        if (HasNext) asked[j] = next[j];
    }
}

// Columns c .. c + n, kColumns at most, of head h of one sequence.
static void columns(const GatedDeltaArgs& args, int seq, int h, int c, int n, float* scratch) {
    const int dim = args.key_dim, value_dim = args.value_dim, heads = args.num_heads;
    const int first = args.query_start_loc[seq], end = args.query_start_loc[seq + 1];
    const int64_t width = 2 * args.num_key_heads * dim + int64_t(heads) * value_dim;
    float* kept = args.state + (int64_t(args.slots[seq]) * heads + h) * dim * value_dim + c;
    Token now{0, 0, scratch, scratch + dim}, next{0, 0, scratch + 2 * dim, scratch + 3 * dim};
    float* state = scratch + 4 * dim;  // [dim][kColumns]
    read_token(args, first, h, now);
    vf asked[kVectors], delta[kVectors], out[kVectors], values[kVectors];
    for (int j = 0; j < kVectors; ++j) asked[j] = vf_zero();
    if (args.positions[first] > 0) {
        for (int i = 0; i < dim; ++i) {
            load_columns(values, kept + int64_t(i) * value_dim, n);
            const vf k = vf_set(now.k[i]);
            for (int j = 0; j < kVectors; ++j) {
                vf_store(state + i * kColumns + j * VW, values[j]);
                asked[j] = vf_fma(k, values[j], asked[j]);
            }
        }
    } else {
        memset(state, 0, size_t(dim) * kColumns * sizeof(float));
    }
    for (int row = first; row < end; ++row) {
        load_columns(values, args.qkv + row * width + (width - int64_t(heads) * value_dim) + h * value_dim + c, n);
        const vf decay = vf_set(now.decay), beta = vf_set(now.beta);
        for (int j = 0; j < kVectors; ++j) delta[j] = vf_mul(beta, vf_sub(values[j], vf_mul(decay, asked[j])));
        if (row + 1 < end) {
            read_token(args, row + 1, h, next);
            pass<true>(state, now, next.k, delta, out, asked, dim);
        } else {
            pass<false>(state, now, nullptr, delta, out, asked, dim);
        }
        store_columns(args.out + (int64_t(row) * heads + h) * value_dim + c, out, n);
        const Token swapped = now;
        now = next, next = swapped;
    }
    for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < kVectors; ++j) values[j] = vf_load(state + i * kColumns + j * VW);
        store_columns(kept + int64_t(i) * value_dim, values, n);
    }
}

// asked += k S, of `rows` rows of kColumns columns, or of n where they are not whole.
template <bool IsWhole>
static void ask(float* asked, const float* state, const float* k, int rows, int stride, int n) {
    vf sums[kVectors], s[kVectors];
    load_columns<IsWhole>(sums, asked, n);
    for (int i = 0; i < rows; ++i) {
        load_columns<IsWhole>(s, state + int64_t(i) * stride, n);
        for (int j = 0; j < kVectors; ++j) sums[j] = vf_fma(vf_set(k[i]), s[j], sums[j]);
    }
    store_columns<IsWhole>(asked, sums, n);
}

// S = d S + k delta; out += q S. `ahead` behind what it writes lies the next head's state, which is asked for meanwhile: this
// computes, and `ask` waits for memory.
template <bool IsWhole>
static void correct(float* out, float* state, const Token& token, const float* delta, int first, int rows, int stride, int n,
                    int ahead) {
    vf sums[kVectors], added[kVectors], s[kVectors];
    load_columns<IsWhole>(sums, out, n);
    load_columns<IsWhole>(added, delta, n);
    for (int i = 0; i < rows; ++i) {
        float* place = state + int64_t(i) * stride;
        load_columns<IsWhole>(s, place, n);
        for (int j = 0; j < kColumns; j += kLine) __builtin_prefetch(place + ahead + j, 1, 2);
        const vf k = vf_set(token.k[first + i]), q = vf_set(token.q[first + i]), decay = vf_set(token.decay);
        for (int j = 0; j < kVectors; ++j) {
            s[j] = vf_fma(k, added[j], vf_mul(decay, s[j]));
            sums[j] = vf_fma(q, s[j], sums[j]);
        }
        store_columns<IsWhole>(place, s, n);
    }
    store_columns<IsWhole>(out, sums, n);
}

// All columns of head h of a sequence of one row: the state is read as it lies in memory, which bounds this.
static void one_row(const GatedDeltaArgs& args, int seq, int h, float* scratch) {
    const int dim = args.key_dim, width = args.value_dim, heads = args.num_heads, row = args.query_start_loc[seq];
    float* state = args.state + (int64_t(args.slots[seq]) * heads + h) * dim * width;
    float* out = args.out + (int64_t(row) * heads + h) * width;
    const float* values = args.qkv + int64_t(row) * (2 * args.num_key_heads * dim + heads * width) +
                          2 * args.num_key_heads * dim + h * width;
    Token token{0, 0, scratch, scratch + dim};
    float* asked = scratch + 2 * dim;
    read_token(args, row, h, token);
    memset(asked, 0, size_t(width) * sizeof(float));
    memset(out, 0, size_t(width) * sizeof(float));
    if (args.positions[row] == 0) memset(state, 0, size_t(dim) * width * sizeof(float));
    const auto tiles = [&](const auto& whole, const auto& part) {
        for (int i = 0; i < dim; i += kTileRows)
            for (int c = 0; c < width; c += kColumns) {
                const int rows = dim - i < kTileRows ? dim - i : kTileRows, n = width - c;
                if (n >= kColumns) whole(i, c, rows, n);
                else part(i, c, rows, n);
            }
    };
    const auto at = [&](int i, int c) { return state + int64_t(i) * width + c; };
    tiles([&](int i, int c, int rows, int n) { ask<true>(asked + c, at(i, c), token.k + i, rows, width, n); },
          [&](int i, int c, int rows, int n) { ask<false>(asked + c, at(i, c), token.k + i, rows, width, n); });
    for (int c = 0; c < width; c += VW) {
        const int n = width - c < VW ? width - c : VW;
        const vf missing = vf_sub(load(values + c, n), vf_mul(vf_set(token.decay), load(asked + c, n)));
        store(asked + c, vf_mul(vf_set(token.beta), missing), n);
    }
    const int ahead = dim * width;
    tiles(
        [&](int i, int c, int rows, int n) { correct<true>(out + c, at(i, c), token, asked + c, i, rows, width, n, ahead); },
        [&](int i, int c, int rows, int n) { correct<false>(out + c, at(i, c), token, asked + c, i, rows, width, n, ahead); });
}

static void run(const GatedDeltaArgs& args) {
    const int64_t parts = (args.value_dim + kColumns - 1) / kColumns, tasks = parts * args.num_heads;
    const size_t bytes = (size_t(args.key_dim) * (kColumns + 4) + size_t(args.value_dim)) * sizeof(float);
    parallel_for(tasks * args.num_seqs, [&](int64_t task, int thread) {
        const int seq = int(task / tasks), h = int(task % tasks / parts), c = int(task % parts) * kColumns;
        const int rows = args.query_start_loc[seq + 1] - args.query_start_loc[seq];
        if (rows == 0 || (rows == 1 && c > 0)) return;
        float* scratch = static_cast<float*>(thread_scratch(thread, bytes));
        if (rows == 1) one_row(args, seq, h, scratch);
        else columns(args, seq, h, c, args.value_dim - c < kColumns ? args.value_dim - c : kColumns, scratch);
    });
}

static void gate(float* x, const float* gates, int64_t count, bool silu) {
    parallel_for((count + kGateFloats - 1) / kGateFloats, [&](int64_t task, int) {
        const int64_t end = (task + 1) * kGateFloats < count ? (task + 1) * kGateFloats : count;
        for (int64_t i = task * kGateFloats; i < end; i += VW) {
            const int n = end - i < VW ? int(end - i) : VW;
            const vf one = vf_set(1.0f), opened = load(gates + i, n);
            const vf sigmoid = vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), opened))));
            store(x + i, vf_mul(load(x + i, n), silu ? vf_mul(opened, sigmoid) : sigmoid), n);
        }
    });
}

extern const GatedDeltaKernels gated_delta_kernels = {run, gate};

}  // namespace OCTAVO_ISA
}  // namespace octavo
