// The scan of Mamba: a state of several numbers a channel, which each token lets decay and adds to, by rates of its own.
#pragma once

#include "isa.h"

namespace octavo {

struct SelectiveScanArgs {
    float* out;          // [rows][width]: (sum over n of state * c + d * x) * silu(gate)
    const float *x, *dt, *gate;  // [rows][width]; softplus(dt) is the step; of heads dt is [rows][heads]
    const float *b, *c;          // [rows][groups * size]: the channels come in so many groups
    const float* a_log;          // [size][width]: the rate is -exp(a_log); of heads [heads]
    const float* d;              // [width]; of heads [heads]
    float* state;                // [slots][size][width]
    const int32_t* slots;            // [num_seqs]
    const int32_t* positions;        // [rows]; a sequence that begins at 0 has zeros for a state
    const int32_t* query_start_loc;  // [num_seqs + 1]
    int num_seqs;
    int width, size;    // size is at most kMaxStateSize
    int heads, groups;  // 0 heads: each channel has steps and rates of its own; else a head's share them
};

constexpr int kMaxStateSize = 256;

struct SelectiveScanKernels {
    void (*run)(const SelectiveScanArgs& args);
};

OCTAVO_DECLARE_KERNELS(SelectiveScanKernels, selective_scan_kernels)

}  // namespace octavo
