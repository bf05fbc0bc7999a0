#include "kernels/latent.h"

#include "kernels/rms.h"
#include "kernels/rotate.h"
#include "pool.h"

namespace octavo {
namespace OCTAVO_ISA {

template <class To>
static void store(const LatentWriteArgs& args, const float* x, int64_t slot) {
    typedef typename To::T T;
    const int width = args.rank + args.rope_dim;
    const int64_t block = slot / args.block_size, offset = slot % args.block_size;
    T* out = static_cast<T*>(args.cache) + block * args.stride + offset * width;
    for (int i = 0; i < width; ++i) out[i] = To::of(x[i]);
}

static void store_i8(const LatentWriteArgs& args, const float* x, int64_t slot) {
    const int64_t width = args.rank + args.rope_dim, tile_bytes = width * kKeyTile + kTileScaleBytes;
    const int64_t block = slot / args.block_size, offset = slot % args.block_size, key = offset % kKeyTile;
    int8_t* tile = static_cast<int8_t*>(args.cache) + block * args.stride + offset / kKeyTile * tile_bytes;
    store_i8(tile + key * width, 1, reinterpret_cast<float*>(tile + width * kKeyTile) + key, x, int(width));
}

static void write_row(const LatentWriteArgs& args, int64_t row, float* x) {
    const int rank = args.rank, rope = args.rope_dim, width = rank + rope, q_width = args.nope_dim + rope;
    const float* cos_sin = args.cos_sin + int64_t(args.positions[row]) * rope;
    const float* kv = args.kv + row * width;
    scale_row(x, kv, args.norm, inverse_rms(kv, rank, args.eps), rank);
    memcpy(x + rank, kv + rank, sizeof(float) * rope);
    rotate(x + rank, cos_sin, rope / 2);
    const float* q = args.q + row * args.num_heads * q_width + args.nope_dim;
    float* out = args.q_latent + row * args.num_heads * width + rank;
    for (int head = 0; head < args.num_heads; ++head, q += q_width, out += width) {
        memcpy(out, q, sizeof(float) * rope);
        rotate(out, cos_sin, rope / 2);
    }
    switch (args.type) {
        case CacheType::f32: return store<ToF32>(args, x, args.slots[row]);
        case CacheType::bf16: return store<ToBF16>(args, x, args.slots[row]);
        case CacheType::f16: return store<ToF16>(args, x, args.slots[row]);
        case CacheType::e4m3: return store<ToE4M3>(args, x, args.slots[row]);
        case CacheType::e5m2: return store<ToE5M2>(args, x, args.slots[row]);
        case CacheType::i8: return store_i8(args, x, args.slots[row]);
    }
}

static void latent_write(const LatentWriteArgs& args) {
    constexpr int64_t kTaskRows = 4;
    const size_t bytes = sizeof(float) * size_t(args.rank + args.rope_dim);
    parallel_for((args.rows + kTaskRows - 1) / kTaskRows, [&](int64_t task, int thread) {
        float* x = static_cast<float*>(thread_scratch(thread, bytes));
        for (int64_t row = task * kTaskRows; row < (task + 1) * kTaskRows && row < args.rows; ++row) write_row(args, row, x);
    });
}

extern const LatentKernels latent_kernels = {latent_write};

}  // namespace OCTAVO_ISA
}  // namespace octavo
