#include "kernels/lora.h"

#include "pool.h"
#include "simd.h"

// The sums of a row: along K a vector of partial sums for each rank, along the ranks one after the other. Neither knows of the
// rows beside it.

namespace octavo {
namespace OCTAVO_ISA {

namespace {

template <LoraType T>
OCTAVO_INLINE vf read(const void* values, int64_t at) {
    if constexpr (T == LoraType::bf16) return vf_load_bf16((const uint16_t*)values + at);
    else if constexpr (T == LoraType::f16) return vf_load_f16((const uint16_t*)values + at);
    else return vf_load((const float*)values + at);
}

// The first n of them, the other lanes 0.
template <LoraType T>
OCTAVO_INLINE vf read_n(const void* values, int64_t at, int n) {
    float lanes[VW];
    for (int i = 0; i < VW; ++i) {
        if (i >= n) lanes[i] = 0.0f;
        else if constexpr (T == LoraType::bf16) lanes[i] = bf16_to_f32(((const uint16_t*)values)[at + i]);
        else if constexpr (T == LoraType::f16) lanes[i] = f16_to_f32(((const uint16_t*)values)[at + i]);
        else lanes[i] = ((const float*)values)[at + i];
    }
    return vf_load(lanes);
}

// t[r][0 .. Q) = scaling * x[r] . a[0 .. Q)
template <LoraType T, int R, int Q>
static void shrink_ranks(const float* const* x, const void* a, int64_t first, int64_t K, float scaling, float* t) {
    vf acc[R][Q];
    for (int r = 0; r < R; ++r)
        for (int q = 0; q < Q; ++q) acc[r][q] = vf_zero();
    int64_t k = 0;
    for (; k + VW <= K; k += VW) {
        vf v[Q];
        for (int q = 0; q < Q; ++q) v[q] = read<T>(a, first + q * K + k);
        for (int r = 0; r < R; ++r) {
            const vf xv = vf_load(x[r] + k);
            for (int q = 0; q < Q; ++q) acc[r][q] = vf_fma(xv, v[q], acc[r][q]);
        }
    }
    if (k < K) {
        const int n = int(K - k);
        for (int r = 0; r < R; ++r) {
            const vf xv = vf_load_n(x[r] + k, n, 0.0f);
            for (int q = 0; q < Q; ++q) acc[r][q] = vf_fma(xv, read_n<T>(a, first + q * K + k, n), acc[r][q]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int q = 0; q < Q; ++q) t[r * kMaxLoraRank + q] = vf_sum(acc[r][q]) * scaling;
}

template <LoraType T, int R>
static void shrink(const float* const* x, const LoraPart& part, int64_t K, float* t) {
    constexpr int wide = R == 1 ? 8 : 4;
    int q = 0;
    for (; q + wide <= part.rank; q += wide) shrink_ranks<T, R, wide>(x, part.a, q * K, K, part.scaling, t + q);
    for (; q < part.rank; ++q) shrink_ranks<T, R, 1>(x, part.a, q * K, K, part.scaling, t + q);
}

// out[r][n .. n + C VW) += t[r] b
template <LoraType T, int R, int C>
static void expand_columns(float* const* out, const LoraPart& part, int64_t n, const float* t) {
    vf acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = vf_zero();
    for (int q = 0; q < part.rank; ++q) {
        vf v[C];
        for (int c = 0; c < C; ++c) v[c] = read<T>(part.b, q * part.columns + n + c * VW);
        for (int r = 0; r < R; ++r) {
            const vf tv = vf_set(t[r * kMaxLoraRank + q]);
            for (int c = 0; c < C; ++c) acc[r][c] = vf_fma(tv, v[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) {
            float* to = out[r] + part.first + n + c * VW;
            vf_store(to, vf_add(vf_load(to), acc[r][c]));
        }
}

template <LoraType T, int R>
static void expand(float* const* out, const LoraPart& part, const float* t) {
    int64_t n = 0;
    for (; n + 4 * VW <= part.columns; n += 4 * VW) expand_columns<T, R, 4>(out, part, n, t);
    for (; n + VW <= part.columns; n += VW) expand_columns<T, R, 1>(out, part, n, t);
    if (n == part.columns) return;
    const int left = int(part.columns - n);
    for (int r = 0; r < R; ++r) {
        vf acc = vf_zero();
        for (int q = 0; q < part.rank; ++q)
            acc = vf_fma(vf_set(t[r * kMaxLoraRank + q]), read_n<T>(part.b, q * part.columns + n, left), acc);
        float* to = out[r] + part.first + n;
        vf_store_n(to, vf_add(vf_load_n(to, left, 0.0f), acc), left);
    }
}

template <LoraType T, int R>
static void rows(const LoraArgs& args, const LoraRows& group) {
    const LoraWeights& weights = *group.weights;
    const float* x[R];
    float* out[R];
    for (int r = 0; r < R; ++r) {
        x[r] = args.x + group.rows[r] * args.K;
        out[r] = args.out + group.rows[r] * args.N;
    }
    float t[R * kMaxLoraRank];
    for (int p = 0; p < weights.num_parts; ++p) {
        shrink<T, R>(x, weights.parts[p], args.K, t);
        expand<T, R>(out, weights.parts[p], t);
    }
    if (weights.scale)
        for (int r = 0; r < R; ++r)
            for (int64_t n = 0; n < args.N; ++n) out[r][n] *= weights.scale[n];
    if (weights.shift)
        for (int r = 0; r < R; ++r)
            for (int64_t n = 0; n < args.N; ++n) out[r][n] += weights.shift[n];
}

template <LoraType T>
static void group_rows(const LoraArgs& args, const LoraRows& group) {
    switch (group.count) {
        case 4: rows<T, 4>(args, group); break;
        case 3: rows<T, 3>(args, group); break;
        case 2: rows<T, 2>(args, group); break;
        default: rows<T, 1>(args, group); break;
    }
}

static void add(const LoraArgs& args) {
    parallel_for(args.num_groups, [&](int64_t task, int) {
        const LoraRows& group = args.groups[task];
        switch (group.weights->type) {
            case LoraType::bf16: group_rows<LoraType::bf16>(args, group); break;
            case LoraType::f16: group_rows<LoraType::f16>(args, group); break;
            default: group_rows<LoraType::f32>(args, group); break;
        }
    });
}

}  // namespace

extern const LoraKernels lora_kernels = {add};

}  // namespace OCTAVO_ISA
}  // namespace octavo
