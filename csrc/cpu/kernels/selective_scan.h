// The scan of Mamba: a state of several numbers a channel, which each token lets decay and adds to, by rates of its own.
#pragma once

#include "isa.h"

namespace octavo {

struct SelectiveScanArgs {
    float* out;          // [rows][width]: (sum over n of state * c + d * x) * silu(gate)
    const float *x, *dt, *gate;  // [rows][width]; softplus(dt) is the step
    const float *b, *c;          // [rows][size]
    const float* a_log;          // [size][width]: the rate is -exp(a_log)
    const float* d;              // [width]
    float* state;                // [slots][size][width]
    const int32_t* slots;            // [num_seqs]
    const int32_t* positions;        // [rows]; a sequence that begins at 0 has zeros for a state
    const int32_t* query_start_loc;  // [num_seqs + 1]
    int num_seqs;
    int width, size;  // size is at most kMaxStateSize
};

constexpr int kMaxStateSize = 256;

struct SelectiveScanKernels {
    void (*run)(const SelectiveScanArgs& args);
};

OCTAVO_DECLARE_KERNELS(SelectiveScanKernels, selective_scan_kernels)

}  // namespace octavo
