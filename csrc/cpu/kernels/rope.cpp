#include "kernels/rope.h"

#include "kernels/rms.h"
#include "kernels/rotate.h"
#include "pool.h"

namespace octavo {
namespace OCTAVO_ISA {

// Floats of qkv that one task handles.
constexpr int64_t kTaskFloats = 8192;

static inline void turn_heads(const RopeArgs& args, float* x, int count, const float* norm, const float* cos_sin) {
    const int dim = args.head_dim;
    for (int head = 0; head < count; ++head, x += dim) {
        if (norm && !args.norms_rotated) scale_row(x, x, norm, inverse_rms(x, dim, args.eps), dim);
        if (cos_sin) rotate(x, cos_sin, dim / 2);
        if (norm && args.norms_rotated) scale_row(x, x, norm, inverse_rms(x, dim, args.eps), dim);
    }
}

// Keeps a compiler from gathering a loop's values into a scatter, which on some processors takes many times as long as the
// stores.
template <class T>
OCTAVO_INLINE void keep_scalar(T& value) {
    if constexpr (sizeof(T) == 4) {
#if defined(__x86_64__)
        asm("" : "+x"(value));
#endif
    } else {
        asm("" : "+r"(value));
    }
}

template <class To>
static void write_kv(const RopeArgs& args, const float* k, const float* v, int64_t slot) {
    typedef typename To::T T;
    const float k_factor = 1.0f / args.k_scale, v_factor = 1.0f / args.v_scale;
    const int dim = args.head_dim, padded = padded_dim(dim), tiles = args.block_size / kKeyTile;
    const int64_t block = slot / args.block_size, offset = slot % args.block_size;
    for (int head = 0; head < args.num_kv_heads; ++head, k += dim, v += dim) {
        T* kt = static_cast<T*>(args.k_cache) + block * args.k_stride +
                (int64_t(head) * tiles + offset / kKeyTile) * dim * kKeyTile + offset % kKeyTile;
        T* vt = static_cast<T*>(args.v_cache) + block * args.v_stride + (int64_t(head) * args.block_size + offset) * padded;
        for (int d = 0; d < dim; ++d) {
            T value = To::of(k[d] * k_factor);
            keep_scalar(value);
            kt[d * kKeyTile] = value;
        }
        for (int d = 0; d < dim; ++d) vt[d] = To::of(v[d] * v_factor);
        for (int d = dim; d < padded; ++d) vt[d] = 0;
    }
}

static void write_kv_i8(const RopeArgs& args, const float* k, const float* v, int64_t slot) {
    const int dim = args.head_dim, padded = padded_dim(dim), tiles = args.block_size / kKeyTile;
    const int64_t block = slot / args.block_size, offset = slot % args.block_size, key = offset % kKeyTile;
    const int64_t k_tile = int64_t(dim) * kKeyTile, v_tile = int64_t(padded) * kKeyTile;
    for (int head = 0; head < args.num_kv_heads; ++head, k += dim, v += dim) {
        const int64_t tile = int64_t(head) * tiles + offset / kKeyTile;
        int8_t* kt = static_cast<int8_t*>(args.k_cache) + block * args.k_stride + tile * (k_tile + kTileScaleBytes);
        int8_t* vt = static_cast<int8_t*>(args.v_cache) + block * args.v_stride + tile * (v_tile + kTileScaleBytes);
        store_i8(kt + key, kKeyTile, reinterpret_cast<float*>(kt + k_tile) + key, k, dim);
        store_i8(vt + key * padded, 1, reinterpret_cast<float*>(vt + v_tile) + key, v, dim);
        for (int d = dim; d < padded; ++d) vt[key * padded + d] = 0;
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
    if (args.num_kv_heads == 0) return;
    switch (args.type) {
        case CacheType::f32: return write_kv<ToF32>(args, k, v, args.slots[row]);
        case CacheType::bf16: return write_kv<ToBF16>(args, k, v, args.slots[row]);
        case CacheType::f16: return write_kv<ToF16>(args, k, v, args.slots[row]);
        case CacheType::e4m3: return write_kv<ToE4M3>(args, k, v, args.slots[row]);
        case CacheType::e5m2: return write_kv<ToE5M2>(args, k, v, args.slots[row]);
        case CacheType::i8: return write_kv_i8(args, k, v, args.slots[row]);
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
