// From logits to tokens, and log probabilities. What the steps mean is written in octavo/ops/reference_sampling.py.
#pragma once

#include "isa.h"

namespace octavo {

// CSR over the rows: row i owns the entries offsets[i] .. offsets[i + 1]. offsets is null when no row has any.
struct PenaltyRows {
    const float *repetition, *frequency, *presence;  // [rows]
    const int32_t* offsets;
    const int32_t *ids, *counts, *in_prompt;  // [entries]
};
struct BiasRows {
    const int32_t* offsets;
    const int32_t* ids;
    const float* values;
};
struct MaskRows {
    const int32_t* offsets;
    const int32_t* ids;
};

struct SampleArgs {
    float* logits;  // [rows][vocab]; edited in place and put back
    int64_t rows;
    int64_t vocab;
    int32_t* ids;    // [rows] out; -1 where flagged
    int32_t* flags;  // [rows] out; 1: a NaN, or the best logit is not finite
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p;
    const uint64_t* seeds;
    const uint64_t* positions;
    PenaltyRows penalties;
    BiasRows bias;
    MaskRows masks;
};

struct LogprobArgs {
    const float* logits;  // [rows][vocab]
    int64_t rows;
    int64_t vocab;
    const int32_t* ids;  // [rows]
    int64_t k;
    float* logprob;       // [rows] out
    int32_t* rank;        // [rows] out, 1: the best
    int32_t* top_ids;     // [rows][k] out
    float* top_logprobs;  // [rows][k] out
};

struct SamplingKernels {
    void (*sample)(const SampleArgs& args);
    void (*logprobs)(const LogprobArgs& args);
};

OCTAVO_DECLARE_KERNELS(SamplingKernels, sampling_kernels)

}  // namespace octavo
