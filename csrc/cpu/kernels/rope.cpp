#include "kernels/rope.h"

#include "kernels/rms.h"
#include "pool.h"

namespace octavo {
namespace OCTAVO_ISA {

// Floats of qkv that one task handles.
constexpr int64_t kTaskFloats = 8192;

struct ToF32 {
    typedef float T;
    static T of(float x) { return x; }
};
struct ToBF16 {
    typedef uint16_t T;
    static T of(float x) { return f32_to_bf16(x); }
};
struct ToF16 {
    typedef uint16_t T;
    static T of(float x) { return f32_to_f16(x); }
};

// Pairs are (x[i], x[i + half]).
static inline void rotate(float* x, const float* cos_sin, int half) {
    const float *cos = cos_sin, *sin = cos_sin + half;
    int i = 0;
    for (; i + VW <= half; i += VW) {
        const vf a = vf_load(x + i), b = vf_load(x + half + i), c = vf_load(cos + i), s = vf_load(sin + i);
        vf_store(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
        vf_store(x + half + i, vf_add(vf_mul(b, c), vf_mul(a, s)));
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

static inline void turn_heads(const RopeArgs& args, float* x, int count, const float* norm, const float* cos_sin) {
    const int dim = args.head_dim;
    for (int head = 0; head < count; ++head, x += dim) {
        if (norm && !args.norms_rotated) scale_row(x, x, norm, inverse_rms(x, dim, args.eps), dim);
        if (cos_sin) rotate(x, cos_sin, dim / 2);
        if (norm && args.norms_rotated) scale_row(x, x, norm, inverse_rms(x, dim, args.eps), dim);
    }
}

template <class To>
static void write_kv(const RopeArgs& args, const float* k, const float* v, int64_t slot) {
    typedef typename To::T T;
    const int dim = args.head_dim, padded = padded_dim(dim), tiles = args.block_size / kKeyTile;
    const int64_t block = slot / args.block_size, offset = slot % args.block_size;
    for (int head = 0; head < args.num_kv_heads; ++head, k += dim, v += dim) {
        const int64_t at = block * args.num_kv_heads + head;
        T* kt = static_cast<T*>(args.k_cache) + (at * tiles + offset / kKeyTile) * dim * kKeyTile + offset % kKeyTile;
        T* vt = static_cast<T*>(args.v_cache) + (at * args.block_size + offset) * padded;
        for (int d = 0; d < dim; ++d) kt[d * kKeyTile] = To::of(k[d]);
        for (int d = 0; d < dim; ++d) vt[d] = To::of(v[d]);
        for (int d = dim; d < padded; ++d) vt[d] = 0;
    }
}

static void rope_row(const RopeArgs& args, int64_t row) {
    const int dim = args.head_dim;
    float* q = args.qkv + row * (args.num_heads + 2 * args.num_kv_heads) * dim;
    float *k = q + args.num_heads * dim, *v = k + args.num_kv_heads * dim;
    const float* cos_sin = args.cos_sin ? args.cos_sin + int64_t(args.positions[row]) * dim : nullptr;
    turn_heads(args, q, args.num_heads, args.q_norm, cos_sin);
    turn_heads(args, k, args.num_kv_heads, args.k_norm, cos_sin);
    if (args.q_scales) {
        const float scale = args.q_scales[args.positions[row]];
        for (float* x = q; x < k; ++x) *x *= scale;
    }
    switch (args.type) {
        case CacheType::f32: return write_kv<ToF32>(args, k, v, args.slots[row]);
        case CacheType::bf16: return write_kv<ToBF16>(args, k, v, args.slots[row]);
        case CacheType::f16: return write_kv<ToF16>(args, k, v, args.slots[row]);
    }
}

static void rope_kv_write(const RopeArgs& args) {
    const int64_t width = int64_t(args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
    const int64_t step = width < kTaskFloats ? kTaskFloats / width : 1;
    parallel_for((args.rows + step - 1) / step, [&](int64_t task, int) {
        for (int64_t row = task * step; row < (task + 1) * step && row < args.rows; ++row) rope_row(args, row);
    });
}

extern const RopeKernels rope_kernels = {rope_kv_write};

}  // namespace OCTAVO_ISA
}  // namespace octavo
