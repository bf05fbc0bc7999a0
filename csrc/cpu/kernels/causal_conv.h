// A convolution over a sequence's last tokens, a filter a channel. What it needs of earlier tokens is kept by slot.
#pragma once

#include "isa.h"

namespace octavo {

struct CausalConvArgs {
    float* out;           // [rows][width]
    const float* x;       // gated: [rows][3 width] = b | c | x, out = c * conv(b * x); else [rows][width], silu(conv(x))
    const float* weight;  // [taps][width], the last for the token itself
    const float* bias;    // [width] or null
    float* state;         // [slots][taps - 1][width]: the inputs of the convolution before the next token, the oldest first
    const int32_t* slots;            // [num_seqs]
    const int32_t* positions;        // [rows]; a sequence that begins at 0 has zeros for a state
    const int32_t* query_start_loc;  // [num_seqs + 1]
    int num_seqs;
    int width, taps;  // taps is at most kMaxTaps
    bool gated;
};

constexpr int kMaxTaps = 8;

struct CausalConvKernels {
    void (*run)(const CausalConvArgs& args);
};

OCTAVO_DECLARE_KERNELS(CausalConvKernels, causal_conv_kernels)

}  // namespace octavo
