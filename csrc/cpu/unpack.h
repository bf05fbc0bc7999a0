// Bit fields of a file's blocks -> a byte a value, before they are packed for a device.
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

// values [num_blocks, block_values]: the fields of every block put together. flip: bits of all values that are turned over
// afterwards; table: of 16 values that replace those below 16, or null. Throws std::invalid_argument if a field does not
// have a value for each of the block's, or leaves the block.
void unpack_blocks(uint8_t* values, int64_t block_values, const uint8_t* blocks, int64_t block_bytes, int64_t num_blocks,
                   const std::vector<Fields>& fields, uint8_t flip, const uint8_t* table);

}  // namespace octavo
