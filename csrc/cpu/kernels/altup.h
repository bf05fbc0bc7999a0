// Alternating updates: a token has several streams, of which a layer computes one and predicts the others (Baykal et al. 2023).
#pragma once

#include "isa.h"

namespace octavo {

constexpr int kMaxStreams = 8;

struct AltUpArgs {
    float* streams[kMaxStreams];  // each [rows][width]
    int count;
    const float* scores;  // [rows][count], before the tanh
    const float* coefs;   // predict: [count * count][count]; correct: [count][count]
    int64_t rows, width;
};

struct AltUpKernels {
    // With t = tanh(scores): stream j += the sum over i of (coefs[j * count + i] . t) * stream i, all as they were before.
    void (*predict)(const AltUpArgs& args);
    // Stream j += (1 + coefs[j] . t) * (activated - stream `active`, as it was). out = the new stream `active`, times `scale`
    // [width], which may be null.
    void (*correct)(const AltUpArgs& args, float* out, const float* activated, int active, const float* scale);
};

OCTAVO_DECLARE_KERNELS(AltUpKernels, altup_kernels)

}  // namespace octavo
