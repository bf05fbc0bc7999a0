#include "kernels/causal_conv.h"

#include "kernels/channels.h"

// A row's sum runs over its taps from the oldest on, whatever rows of the sequence came in the same step.

namespace octavo {
namespace OCTAVO_ISA {

// Channels of one task.
constexpr int kTaskWidth = 256;

// Channels c .. c + n of one sequence.
static void channels(const CausalConvArgs& args, int seq, int c, int n) {
    const int before = args.taps - 1, width = args.width, stride = args.gated ? 3 * width : width;
    const int first = args.query_start_loc[seq], end = args.query_start_loc[seq + 1];
    float* state = args.state + int64_t(args.slots[seq]) * before * width + c;
    vf window[kMaxTaps], weight[kMaxTaps];
    for (int t = 0; t < args.taps; ++t) weight[t] = load(args.weight + int64_t(t) * width + c, n);
    for (int t = 0; t < before; ++t) window[t] = args.positions[first] > 0 ? load(state + int64_t(t) * width, n) : vf_zero();
    const vf bias = args.bias ? load(args.bias + c, n) : vf_zero();
    for (int row = first; row < end; ++row) {
        const float* x = args.x + int64_t(row) * stride + c;
        window[before] = args.gated ? vf_mul(load(x, n), load(x + 2 * width, n)) : load(x, n);
        vf sum = bias;
        for (int t = 0; t < args.taps; ++t) sum = vf_fma(weight[t], window[t], sum);
        sum = args.gated ? vf_mul(load(x + width, n), sum) : vf_silu(sum);
        store(args.out + int64_t(row) * width + c, sum, n);
        for (int t = 0; t < before; ++t) window[t] = window[t + 1];
    }
    for (int t = 0; t < before; ++t) store(state + int64_t(t) * width, window[t], n);
}

static void run(const CausalConvArgs& args) {
    for_channels(args, kTaskWidth, [&](int seq, int c, int n) { channels(args, seq, c, n); });
}

extern const CausalConvKernels causal_conv_kernels = {run};

}  // namespace OCTAVO_ISA
}  // namespace octavo
