// How the blocks of a file hold their values: bit fields that are put together to a byte a value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace octavo {

// Where a block holds some bits of every one of its values. Runs of `width` bytes lie one after the other; a run holds
// 8 / bits fields of each byte, and the lowest fields of the whole run come first.
struct Fields {
    int64_t offset, bytes;  // in the block
    int64_t width;          // 1, or a multiple of 8
    int bits;               // 1, 2, 4 or 8
    int shift;              // which bit of the value is the field's lowest
};

class BlockFormat {
public:
    // flip: bits of all values that are stored the other way round; table: empty, or what values below 16 stand for.
    // Throws std::invalid_argument if a field does not have a value for each of the block's, or leaves the block.
    BlockFormat(int64_t block_values, int64_t block_bytes, std::vector<Fields> fields, uint8_t flip,
                std::vector<uint8_t> table);

    // Bytes of a row of K values. Throws std::invalid_argument if they are no whole blocks.
    int64_t row_bytes(int64_t K) const;

    // The K values of a row of blocks.
    void unpack_row(uint8_t* values, const uint8_t* row, int64_t K) const;

    // values [N, K]: those of the rows named, or of the first N if `rows` is null.
    void unpack(uint8_t* values, const uint8_t* data, const int64_t* rows, int64_t N, int64_t K) const;

private:
    int64_t block_values_, block_bytes_;
    std::vector<Fields> fields_;
    uint8_t flip_;
    std::vector<uint8_t> table_;
};

}  // namespace octavo
