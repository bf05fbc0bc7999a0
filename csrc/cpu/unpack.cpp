#include "unpack.h"

#include "pool.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace octavo {

namespace {

constexpr int64_t kTaskValues = int64_t(1) << 16;

// The number of which each byte is `byte`.
constexpr uint64_t lanes(uint64_t byte) { return byte * 0x0101010101010101u; }

// Puts eight values to those at p, or in their place.
inline void put(uint8_t* p, uint64_t eight, bool first) {
    if (!first) {
        uint64_t before;
        std::memcpy(&before, p, 8);
        eight |= before;
    }
    std::memcpy(p, &eight, 8);
}

// Eight bytes at a time: a shift moves bits into a neighbour, and the mask drops them there.
void spread(uint8_t* out, const uint8_t* src, const Fields& f, bool first) {
    const uint64_t mask = lanes((1u << f.bits) - 1);
    for (int64_t run = 0; run < f.bytes; run += f.width)
        for (int at = 0; at < 8; at += f.bits)
            for (int64_t i = 0; i < f.width; i += 8, out += 8) {
                uint64_t word;
                std::memcpy(&word, src + run + i, 8);
                put(out, (word >> at & mask) << f.shift, first);
            }
}

// The bits of a byte as eight values: each of eight copies keeps one, and adding 127 carries it to the top.
void spread_bits(uint8_t* out, const uint8_t* src, const Fields& f, bool first) {
    constexpr uint64_t kDiagonal = 0x8040201008040201u;
    for (int64_t i = 0; i < f.bytes; ++i, out += 8) {
        const uint64_t tops = (lanes(src[i]) & kDiagonal) + lanes(0x7f);
        put(out, (tops >> (7 - f.shift)) & lanes(1u << f.shift), first);
    }
}

bool fits(const Fields& f, int64_t block_values, int64_t block_bytes) {
    const bool by_bits = f.width == 1 && f.bits == 1, by_runs = f.width > 0 && f.width % 8 == 0 && f.bytes % f.width == 0;
    return (f.bits == 1 || f.bits == 2 || f.bits == 4 || f.bits == 8) && (by_bits || by_runs) && f.shift >= 0 &&
           f.shift + f.bits <= 8 && f.bytes > 0 && f.bytes * 8 == block_values * f.bits && f.offset >= 0 &&
           f.offset + f.bytes <= block_bytes;
}

}  // namespace

void unpack_blocks(uint8_t* values, int64_t block_values, const uint8_t* blocks, int64_t block_bytes, int64_t num_blocks,
                   const std::vector<Fields>& fields, uint8_t flip, const uint8_t* table) {
    if (fields.empty() || block_values < 8 || num_blocks < 0) throw std::invalid_argument("there are no fields to unpack");
    for (const Fields& f : fields)
        if (!fits(f, block_values, block_bytes)) throw std::invalid_argument("a field does not fit the block");
    const int64_t step = std::max<int64_t>(1, kTaskValues / block_values);
    parallel_for((num_blocks + step - 1) / step, [&](int64_t task, int) {
        for (int64_t b = task * step; b < std::min(num_blocks, (task + 1) * step); ++b) {
            uint8_t* const out = values + b * block_values;
            for (const Fields& f : fields)
                (f.width == 1 ? spread_bits : spread)(out, blocks + b * block_bytes + f.offset, f, &f == &fields.front());
            if (table)
                for (int64_t i = 0; i < block_values; ++i) out[i] = table[out[i] & 15];
            if (flip)
                for (int64_t i = 0; i < block_values; ++i) out[i] ^= flip;
        }
    });
}

}  // namespace octavo
