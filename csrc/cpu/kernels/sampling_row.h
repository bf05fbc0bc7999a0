// One row of logits: its best token, the candidates of a draw, and order without a full sort.
#pragma once

#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

// A token that may be drawn.
struct Candidate {
    float logit;
    int32_t id;
    float weight;  // e^((logit - best) / temperature)
};

// Better first; equal logits by id.
OCTAVO_INLINE bool better(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Heap sort, better first. (No std::sort: a template shared with other files might be linked from a wider instruction set.)
static void sort_candidates(Candidate* c, int64_t count) {
    const auto sink = [&](int64_t at, int64_t end) {
        const Candidate moving = c[at];
        for (;;) {
            int64_t child = 2 * at + 1;
            if (child >= end) break;
            if (child + 1 < end && better(c[child], c[child + 1])) ++child;
            if (!better(moving, c[child])) break;
            c[at] = c[child];
            at = child;
        }
        c[at] = moving;
    };
    for (int64_t i = count / 2 - 1; i >= 0; --i) sink(i, count);
    for (int64_t end = count - 1; end > 0; --end) {
        const Candidate top = c[0];
        c[0] = c[end];
        c[end] = top;
        sink(0, end);
    }
}

// The maximum of a piece of a row, its first index, and whether the piece has a NaN.
struct Best {
    float logit;
    int32_t id;
    bool nan;
};

constexpr int64_t kBestBlock = 1024;

// `origin` is the id of x[0].
static Best best_of(const float* x, int64_t count, int64_t origin) {
    Best best{-INFINITY, int32_t(origin), false};
    const vf one = vf_set(1.0f);
    vf seen[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    for (int64_t from = 0; from < count; from += kBestBlock) {
        const int64_t end = from + kBestBlock < count ? from + kBestBlock : count;
        vf m[4] = {vf_set(-INFINITY), vf_set(-INFINITY), vf_set(-INFINITY), vf_set(-INFINITY)};
        int64_t i = from;
        for (; i + 4 * VW <= end; i += 4 * VW)
            for (int j = 0; j < 4; ++j) {
                const vf v = vf_load(x + i + j * VW);
                m[j] = vf_max(v, m[j]);
                // The second operand is kept where either is NaN: a NaN stays in the sum, an infinity counts 1.
                seen[j] = vf_add(seen[j], vf_min(one, vf_abs(v)));
            }
        float max = vf_hmax(vf_max(vf_max(m[0], m[1]), vf_max(m[2], m[3])));
        for (; i < end; ++i) {
            max = x[i] > max ? x[i] : max;
            best.nan |= x[i] != x[i];
        }
        if (max <= best.logit) continue;
        best.logit = max;
        for (int64_t j = from; j < end; ++j)
            if (x[j] == max) {
                best.id = int32_t(origin + j);
                break;
            }
    }
    const float sum = vf_sum(vf_add(vf_add(seen[0], seen[1]), vf_add(seen[2], seen[3])));
    best.nan |= sum != sum;
    return best;
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
