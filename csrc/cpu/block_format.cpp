#include "block_format.h"

#include "pool.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace octavo {

namespace {

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

// The halves of a byte as two values, the lower first.
void spread_nibbles(uint8_t* out, const uint8_t* src, const Fields& f, bool first) {
    for (int64_t i = 0; i < f.bytes; i += 4, out += 8) {
        uint64_t word = 0;
        for (int64_t j = 0; j < 4; ++j) word |= (uint64_t(src[i + j] & 15) | uint64_t(src[i + j] >> 4) << 8) << 16 * j;
        put(out, word << f.shift, first);
    }
}

bool fits(const Fields& f, int64_t block_values, int64_t block_bytes) {
    const bool by_bits = f.width == 1 && f.bits == 1, by_runs = f.width > 0 && f.width % 8 == 0 && f.bytes % f.width == 0;
    const bool by_nibbles = f.width == 1 && f.bits == 4 && f.bytes % 4 == 0;
    return (f.bits == 1 || f.bits == 2 || f.bits == 4 || f.bits == 8) && (by_bits || by_nibbles || by_runs) && f.shift >= 0 &&
           f.shift + f.bits <= 8 && f.bytes > 0 && f.bytes * 8 == block_values * f.bits && f.offset >= 0 &&
           f.offset + f.bytes <= block_bytes;
}

}  // namespace

BlockFormat::BlockFormat(int64_t block_values, int64_t block_bytes, std::vector<Fields> fields, uint8_t flip,
                         std::vector<uint8_t> table)
    : block_values_(block_values), block_bytes_(block_bytes), fields_(std::move(fields)), flip_(flip),
      table_(std::move(table)) {
    if (fields_.empty() || block_values_ < 8 || (!table_.empty() && table_.size() != 16))
        throw std::invalid_argument("a block has fields, and a table 16 values");
    for (const Fields& f : fields_)
        if (!fits(f, block_values_, block_bytes_)) throw std::invalid_argument("a field does not fit the block");
}

int64_t BlockFormat::row_bytes(int64_t K) const {
    if (K % block_values_) throw std::invalid_argument("a row is whole blocks");
    return K / block_values_ * block_bytes_;
}

void BlockFormat::unpack_row(uint8_t* values, const uint8_t* row, int64_t K) const {
    for (int64_t k = 0; k < K; k += block_values_, row += block_bytes_) {
        uint8_t* const out = values + k;
        for (const Fields& f : fields_)
            (f.width > 1 ? spread : f.bits == 1 ? spread_bits : spread_nibbles)(out, row + f.offset, f, &f == &fields_.front());
        if (!table_.empty())
            for (int64_t i = 0; i < block_values_; ++i) out[i] = table_[out[i] & 15];
        if (flip_)
            for (int64_t i = 0; i < block_values_; ++i) out[i] ^= flip_;
    }
}

void BlockFormat::unpack(uint8_t* values, const uint8_t* data, const int64_t* rows, int64_t N, int64_t K) const {
    const int64_t bytes = row_bytes(K);
    parallel_for(N, [&](int64_t n, int) { unpack_row(values + n * K, data + (rows ? rows[n] : n) * bytes, K); });
}

}  // namespace octavo
