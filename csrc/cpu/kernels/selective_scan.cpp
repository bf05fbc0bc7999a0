#include "kernels/selective_scan.h"

#include "kernels/channels.h"

// A channel goes from token to token, so that its bits do not depend on how a prompt was cut; a row's sum runs over the
// numbers of the state in their order.

namespace octavo {
namespace OCTAVO_ISA {

// Channels of one task.
constexpr int kTaskWidth = 64;

// log(1 + e^x).
OCTAVO_INLINE vf softplus(vf x) {
    float lanes[VW];
    vf_store(lanes, x);
    for (int i = 0; i < VW; ++i) lanes[i] = lanes[i] > 20.0f ? lanes[i] : log1pf(expf(lanes[i]));
    return vf_load(lanes);
}

// Channels c .. c + n of one sequence.
static void channels(const SelectiveScanArgs& args, int seq, int c, int n) {
    const int width = args.width, size = args.size;
    const int first = args.query_start_loc[seq], end = args.query_start_loc[seq + 1];
    const bool goes_on = args.positions[first] > 0;
    float* kept = args.state + int64_t(args.slots[seq]) * size * width + c;
    vf state[kMaxStateSize], rate[kMaxStateSize];
    const vf zero = vf_zero(), d = load(args.d + c, n);
    for (int i = 0; i < size; ++i) {
        rate[i] = vf_sub(zero, vf_exp(load(args.a_log + int64_t(i) * width + c, n)));
        state[i] = goes_on ? load(kept + int64_t(i) * width, n) : zero;
    }
    for (int row = first; row < end; ++row) {
        const int64_t at = int64_t(row) * width + c;
        const float *b = args.b + int64_t(row) * size, *weights = args.c + int64_t(row) * size;
        const vf x = load(args.x + at, n), gate = load(args.gate + at, n), dt = softplus(load(args.dt + at, n));
        const vf added = vf_mul(dt, x);
        vf sum = zero;
        for (int i = 0; i < size; ++i) {
            state[i] = vf_fma(vf_exp(vf_mul(dt, rate[i])), state[i], vf_mul(added, vf_set(b[i])));
            sum = vf_fma(state[i], vf_set(weights[i]), sum);
        }
        sum = vf_fma(d, x, sum);
        store(args.out + at, vf_mul(sum, vf_silu(gate)), n);
    }
    for (int i = 0; i < size; ++i) store(kept + int64_t(i) * width, state[i], n);
}

// One head of one sequence: a step and a rate for all of its channels.
static void head(const SelectiveScanArgs& args, int seq, int h) {
    const int width = args.width, size = args.size, head_dim = width / args.heads, columns = args.groups * size;
    const int first = args.query_start_loc[seq], end = args.query_start_loc[seq + 1];
    const int group = h / (args.heads / args.groups) * size;
    const bool goes_on = args.positions[first] > 0;
    const vf zero = vf_zero(), d = vf_set(args.d[h]);
    const vf rate = vf_sub(zero, vf_exp(vf_set(args.a_log[h])));
    for (int from = 0; from < head_dim; from += VW) {
        const int c = h * head_dim + from, n = head_dim - from < VW ? head_dim - from : VW;
        float* kept = args.state + int64_t(args.slots[seq]) * size * width + c;
        vf state[kMaxStateSize];
        for (int i = 0; i < size; ++i) state[i] = goes_on ? load(kept + int64_t(i) * width, n) : zero;
        for (int row = first; row < end; ++row) {
            const int64_t at = int64_t(row) * width + c;
            const float *b = args.b + int64_t(row) * columns + group, *weights = args.c + int64_t(row) * columns + group;
            const vf x = load(args.x + at, n), gate = load(args.gate + at, n);
            const vf dt = softplus(vf_set(args.dt[int64_t(row) * args.heads + h]));
            const vf added = vf_mul(dt, x), decay = vf_exp(vf_mul(dt, rate));
            vf sum = zero;
            for (int i = 0; i < size; ++i) {
                state[i] = vf_fma(decay, state[i], vf_mul(added, vf_set(b[i])));
                sum = vf_fma(state[i], vf_set(weights[i]), sum);
            }
            sum = vf_fma(d, x, sum);
            store(args.out + at, vf_mul(sum, vf_silu(gate)), n);
        }
        for (int i = 0; i < size; ++i) store(kept + int64_t(i) * width, state[i], n);
    }
}

static void run_heads(const SelectiveScanArgs& args) {
    parallel_for(int64_t(args.heads) * args.num_seqs, [&](int64_t task, int) {
        const int seq = int(task / args.heads);
        if (args.query_start_loc[seq] < args.query_start_loc[seq + 1]) head(args, seq, int(task % args.heads));
    });
}

static void run(const SelectiveScanArgs& args) {
    if (args.heads) return run_heads(args);
    for_channels(args, kTaskWidth, [&](int seq, int c, int n) { channels(args, seq, c, n); });
}

extern const SelectiveScanKernels selective_scan_kernels = {run};

}  // namespace OCTAVO_ISA
}  // namespace octavo
