#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

// The scale, or the min, of column c in group g of a unit.
OCTAVO_INLINE float read_scale(const PackedMatrix& w, const uint8_t* unit, int64_t g, int64_t c, bool min) {
    if (w.scales == ScaleForm::f32) return ((const float*)unit)[kTile * min + c];
    const uint16_t* halves = (const uint16_t*)unit;
    if (w.scales == ScaleForm::f16) return f16_to_f32(halves[kTile * min + c]);
    const int8_t* steps = (const int8_t*)(halves + kTile * (w.mins ? 2 : 1));
    return f16_to_f32(halves[kTile * min + c]) * float(steps[((min ? w.unit_groups : 0) + g) * kTile + c]);
}

// Value k of a part of so many, in column c.
OCTAVO_INLINE int read_value(const uint8_t* part, int bits, int64_t values, int64_t k, int64_t c) {
    const int64_t step = k / 4, at = 4 * c + k % 4;
    if (bits == 8) return part[step * 64 + at];
    const int low = part[step / 2 * 64 + at] >> (step % 2 * 4) & 15;
    if (bits == 4) return low;
    const int high = bits - 4, sharing = 8 / high;
    const uint8_t* above = part + 8 * values + step / sharing * 64;
    return low | (above[at] >> (step % sharing * high) & ((1 << high) - 1)) << 4;
}

void gather_int(const PackedMatrix& w, const uint8_t* tile, int64_t c, float scale, float* out) {
    const float zero = float(w.zero);
    const int64_t group_bytes = (w.unit_bytes - w.header) / w.unit_groups;
    const int64_t values = part_values(w.group);
    for (int64_t k0 = 0; k0 < w.K; k0 += w.group) {
        const int64_t g = k0 / w.group % w.unit_groups;
        const uint8_t* unit = tile + k0 / w.group / w.unit_groups * w.unit_bytes;
        const float s = read_scale(w, unit, g, c, false), low = w.mins ? read_scale(w, unit, g, c, true) : 0.0f;
        const uint8_t* p = unit + w.header + g * group_bytes;
        for (int64_t k = 0; k < w.group; ++k) {
            const int u = read_value(p + k / values * values * 2 * w.bits, w.bits, values, k % values, c);
            const float v = w.mins ? s * float(u) + low : s * (float(u) - zero);
            out[k0 + k] = v * scale;
        }
    }
}

void gather_table(const PackedMatrix& w, const uint8_t* unit, int64_t c, float scale, float* out) {
    for (int64_t k0 = 0; k0 < w.K; k0 += w.group, unit += w.unit_bytes) {
        const float s = ((const float*)unit)[c];
        const uint8_t* p = unit + w.header + c;
        for (int64_t k = 0; k < w.group; ++k) {
            const float v = w.kind == WeightKind::e4m3 ? f16_to_f32(e4m3_bits(p[k * kTile]))
                                                       : w.table[p[k / 2 * kTile] >> (k % 2 * 4) & 15];
            out[k0 + k] = v * s * scale;
        }
    }
}

void gather_fixed(const PackedMatrix& w, const uint8_t* unit, int64_t c, float scale, float* out) {
    for (int64_t k0 = 0; k0 < w.K; k0 += kFixedGroup, unit += w.unit_bytes) {
        const float s = ((const float*)unit)[c];
        const int16_t* q = (const int16_t*)(unit + w.header) + 2 * c;
        for (int64_t k = k0; k < w.K && k < k0 + kFixedGroup; ++k)
            out[k] = float(q[(k - k0) / 2 * 2 * kTile + k % 2]) * s * scale;
    }
}

}  // namespace

void gather_row(const PackedMatrix& w, int64_t n, float scale, float* out) {
    const uint8_t* tile = w.data + n / kTile * w.tile_bytes;
    const int64_t c = n % kTile;
    if (w.kind == WeightKind::integer) {
        gather_int(w, tile, c, scale, out);
    } else if (w.kind == WeightKind::table || w.kind == WeightKind::e4m3) {
        gather_table(w, tile, c, scale, out);
    } else if (w.kind == WeightKind::fixed) {
        gather_fixed(w, tile, c, scale, out);
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
