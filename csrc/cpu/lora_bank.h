// The adapters that rows of a product may run with, by their slots. Owns no values: whoever puts them in keeps them.
#pragma once

#include "kernels/lora.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace octavo {

// Which rows of a step run with which adapter, in the groups that the kernels take. Made once a step for all products.
class LoraPlan {
public:
    // slots [rows]: -1: none.
    LoraPlan(const int32_t* slots, int64_t rows);

    struct Group {
        int slot;
        int64_t first;  // among rows()
        int count;
    };
    const std::vector<int32_t>& rows() const { return rows_; }
    const std::vector<Group>& groups() const { return groups_; }

private:
    std::vector<int32_t> rows_;
    std::vector<Group> groups_;
};

class LoraBank {
public:
    LoraBank(int64_t N, int64_t K, int num_slots);

    void put(int slot, LoraType type, std::vector<LoraPart> parts, const float* scale, const float* shift);
    void clear(int slot);
    // Rows whose adapter has nothing here stay as they are.
    void add(float* out, const float* x, const LoraPlan& plan) const;

    int64_t N() const { return N_; }
    int64_t K() const { return K_; }

private:
    struct Entry {
        LoraType type;
        std::vector<LoraPart> parts;
        const float *scale, *shift;
    };
    int64_t N_, K_;
    std::vector<std::optional<Entry>> slots_;
    int num_used_ = 0;
};

}  // namespace octavo
