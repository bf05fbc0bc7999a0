#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

OCTAVO_INLINE float read_scale(const uint8_t* p, int64_t c, bool wide) {
    if (wide) return ((const float*)p)[c];
    return f16_to_f32(((const uint16_t*)p)[c]);
}

void gather_int(const PackedMatrix& w, const uint8_t* tile, int64_t c, float scale, float* out) {
    const int64_t header = w.wide_scales ? 64 : 32;
    const float zero = float(w.zero);
    for (int64_t k0 = 0; k0 < w.K; k0 += w.group) {
        const uint8_t* p = tile + k0 / w.group * w.group_bytes;
        const float s = read_scale(p, c, w.wide_scales);
        p += header;
        float low = 0.0f;
        if (w.mins) {
            low = read_scale(p, c, w.wide_scales);
            p += header;
        }
        for (int64_t k = 0; k < w.group; ++k) {
            const int64_t step = k / 4;
            const int u = w.kind == WeightKind::int4
                              ? (p[step / 2 * 64 + 4 * c + k % 4] >> (step % 2 * 4)) & 15
                              : p[step * 64 + 4 * c + k % 4];
            const float v = w.mins ? s * float(u) + low : s * (float(u) - zero);
            out[k0 + k] = v * scale;
        }
    }
}

}  // namespace

void gather_row(const PackedMatrix& w, int64_t n, float scale, float* out) {
    const uint8_t* tile = w.data + n / kTile * w.tile_bytes;
    const int64_t c = n % kTile;
    if (w.kind == WeightKind::int4 || w.kind == WeightKind::int8) {
        gather_int(w, tile, c, scale, out);
    } else if (w.kind == WeightKind::f32) {
        for (int64_t k = 0; k < w.K; ++k) out[k] = ((const float*)tile)[k * kTile + c] * scale;
    } else if (w.kind == WeightKind::f16) {
        for (int64_t k = 0; k < w.K; ++k) out[k] = f16_to_f32(((const uint16_t*)tile)[k * kTile + c]) * scale;
    } else {
        for (int64_t k = 0; k < w.K; ++k)
            out[k] = bf16_to_f32(((const uint16_t*)tile)[k / 2 * 2 * kTile + 2 * c + k % 2]) * scale;
    }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
