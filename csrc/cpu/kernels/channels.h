// What goes along a sequence by itself in every channel: VW channels side by side, from row to row.
#pragma once

#include "pool.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

// The first n (1 <= n <= VW) floats; the other lanes are 0, and are neither read nor written.
OCTAVO_INLINE vf load(const float* p, int n) { return n == VW ? vf_load(p) : vf_load_n(p, n, 0.0f); }
OCTAVO_INLINE void store(float* p, vf x, int n) {
    if (n == VW) vf_store(p, x);
    else vf_store_n(p, x, n);
}

// Calls f(seq, c, n) for the channels c .. c + n, VW at most, of every sequence that has rows. A task is `task_width` channels
// of a sequence, a multiple of VW.
template <class Args, class F>
static void for_channels(const Args& args, int task_width, const F& f) {
    const int64_t tasks = (args.width + task_width - 1) / task_width;
    parallel_for(tasks * args.num_seqs, [&](int64_t task, int) {
        const int seq = int(task / tasks), from = int(task % tasks) * task_width;
        if (args.query_start_loc[seq] == args.query_start_loc[seq + 1]) return;
        for (int c = from; c < from + task_width && c < args.width; c += VW)
            f(seq, c, args.width - c < VW ? args.width - c : VW);
    });
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
