#include "kernels/causal_conv.h"

#include "pool.h"
#include "simd.h"

// A row's sum runs over its taps from the oldest on, whatever rows of the sequence came in the same step.

namespace octavo {
namespace OCTAVO_ISA {

// Channels of one task.
constexpr int kTaskWidth = 256;

OCTAVO_INLINE vf load(const float* p, int n) { return n == VW ? vf_load(p) : vf_load_n(p, n, 0.0f); }
OCTAVO_INLINE void store(float* p, vf x, int n) {
    if (n == VW) vf_store(p, x);
    else vf_store_n(p, x, n);
}

// Channels c .. c + n of one sequence.
static void channels(const CausalConvArgs& args, int seq, int c, int n) {
    const int before = args.taps - 1, width = args.width, stride = args.gated ? 3 * width : width;
    const int first = args.query_start_loc[seq], end = args.query_start_loc[seq + 1];
    float* state = args.state + int64_t(args.slots[seq]) * before * width + c;
    vf window[kMaxTaps], weight[kMaxTaps];
    for (int t = 0; t < args.taps; ++t) weight[t] = load(args.weight + int64_t(t) * width + c, n);
    for (int t = 0; t < before; ++t) window[t] = args.positions[first] > 0 ? load(state + int64_t(t) * width, n) : vf_zero();
    const vf bias = args.bias ? load(args.bias + c, n) : vf_zero(), zero = vf_zero(), one = vf_set(1.0f);
    for (int row = first; row < end; ++row) {
        const float* x = args.x + int64_t(row) * stride + c;
        window[before] = args.gated ? vf_mul(load(x, n), load(x + 2 * width, n)) : load(x, n);
        vf sum = bias;
        for (int t = 0; t < args.taps; ++t) sum = vf_fma(weight[t], window[t], sum);
        if (args.gated) sum = vf_mul(load(x + width, n), sum);
        else sum = vf_div(sum, vf_add(one, vf_exp(vf_sub(zero, sum))));
        store(args.out + int64_t(row) * width + c, sum, n);
        for (int t = 0; t < before; ++t) window[t] = window[t + 1];
    }
    for (int t = 0; t < before; ++t) store(state + int64_t(t) * width, window[t], n);
}

static void run(const CausalConvArgs& args) {
    const int64_t tasks = (args.width + kTaskWidth - 1) / kTaskWidth;
    parallel_for(tasks * args.num_seqs, [&](int64_t task, int) {
        const int seq = int(task / tasks), from = int(task % tasks) * kTaskWidth;
        if (args.query_start_loc[seq] == args.query_start_loc[seq + 1]) return;
        for (int c = from; c < from + kTaskWidth && c < args.width; c += VW)
            channels(args, seq, c, args.width - c < VW ? args.width - c : VW);
    });
}

extern const CausalConvKernels causal_conv_kernels = {run};

}  // namespace OCTAVO_ISA
}  // namespace octavo
