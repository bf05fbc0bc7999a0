#include "lora_bank.h"

#include "isa.h"

#include <algorithm>
#include <utility>

namespace octavo {

LoraPlan::LoraPlan(const int32_t* slots, int64_t rows) {
    int32_t most = -1;
    for (int64_t i = 0; i < rows; ++i) most = std::max(most, slots[i]);
    std::vector<int64_t> counts(size_t(most + 1));
    for (int64_t i = 0; i < rows; ++i)
        if (slots[i] >= 0) ++counts[size_t(slots[i])];
    std::vector<int64_t> next(counts.size());
    int64_t first = 0;
    for (size_t slot = 0; slot < counts.size(); ++slot) {
        next[slot] = first;
        for (int64_t at = 0; at < counts[slot]; at += kLoraRows)
            groups_.push_back({int(slot), first + at, int(std::min<int64_t>(kLoraRows, counts[slot] - at))});
        first += counts[slot];
    }
    rows_.resize(size_t(first));
    for (int64_t i = 0; i < rows; ++i)
        if (slots[i] >= 0) rows_[size_t(next[size_t(slots[i])]++)] = int32_t(i);
}

LoraBank::LoraBank(int64_t N, int64_t K, int num_slots) : N_(N), K_(K), slots_(size_t(num_slots)) {}

void LoraBank::put(int slot, LoraType type, std::vector<LoraPart> parts, const float* scale, const float* shift) {
    clear(slot);
    slots_[size_t(slot)] = Entry{type, std::move(parts), scale, shift};
    ++num_used_;
}

void LoraBank::clear(int slot) {
    num_used_ -= slots_[size_t(slot)].has_value();
    slots_[size_t(slot)].reset();
}

void LoraBank::add(float* out, const float* x, const LoraPlan& plan) const {
    if (num_used_ == 0) return;
    std::vector<LoraWeights> weights;  // of the slots that rows have: of experts there are many more
    std::vector<LoraRows> groups;
    weights.reserve(plan.groups().size());
    groups.reserve(plan.groups().size());
    int last = -1;  // groups of a slot stand behind each other
    for (const auto& group : plan.groups()) {
        const auto& entry = slots_[size_t(group.slot)];
        if (!entry) continue;
        if (group.slot != last)
            weights.push_back({entry->type, entry->parts.data(), int(entry->parts.size()), entry->scale, entry->shift});
        last = group.slot;
        groups.push_back({&weights.back(), plan.rows().data() + group.first, group.count});
    }
    if (!groups.empty()) OCTAVO_KERNELS(lora_kernels).add({out, x, N_, K_, groups.data(), int64_t(groups.size())});
}

}  // namespace octavo
