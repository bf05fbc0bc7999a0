// What an adapter of low rank adds to a product: out += scaling * (x A^T) B^T for the rows that run with it.
#pragma once

#include "isa.h"

#include <cstdint>

namespace octavo {

enum class LoraType : int { f32 = 0, bf16 = 1, f16 = 2 };

constexpr int kMaxLoraRank = 256;

// Of the columns first .. first + columns of the product.
struct LoraPart {
    int64_t first, columns;
    int rank;       // at most kMaxLoraRank
    const void* a;  // [rank][K]
    const void* b;  // [rank][columns]
    float scaling;
};

// One adapter for one product.
struct LoraWeights {
    LoraType type;
    const LoraPart* parts;
    int num_parts;
    const float *scale, *shift;  // [N] or null: out = (out + what is added) * scale + shift
};

// Rows that run with one adapter, so few that a task takes all of them.
struct LoraRows {
    const LoraWeights* weights;
    const int32_t* rows;
    int count;  // at most kLoraRows
};

constexpr int kLoraRows = 4;

struct LoraArgs {
    float* out;      // [rows][N]
    const float* x;  // [rows][K]
    int64_t N, K;
    const LoraRows* groups;
    int64_t num_groups;
};

struct LoraKernels {
    void (*add)(const LoraArgs& args);
};

OCTAVO_DECLARE_KERNELS(LoraKernels, lora_kernels)

}  // namespace octavo
