// Logits of the tokens that a grammar does not admit. Meaning: octavo/ops/reference_sampling.py.
#pragma once

#include "isa.h"

namespace octavo {

struct ForbidArgs {
    float* logits;  // [.][vocab]; edited in place
    int64_t vocab;
    const int64_t* rows;    // [num_masks] rows of logits, each once
    const uint32_t* masks;  // [num_masks][num_words]; bit i of a row: token i is admitted
    int64_t num_masks;
    int64_t num_words;
};

struct ForbidKernels {
    void (*forbid)(const ForbidArgs& args);
};

OCTAVO_DECLARE_KERNELS(ForbidKernels, forbid_kernels)

}  // namespace octavo
