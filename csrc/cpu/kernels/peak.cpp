#include "kernels/peak.h"

#include "kernels/intdot.h"

namespace octavo {
namespace OCTAVO_ISA {

// Independent accumulators: enough to hide the latency of one operation, few enough to stay in registers. Where a dot
// product takes several instructions only the last one, an addition, is in the chain; and each chain has a factor of its
// own, else one product would serve all of them.
constexpr int kChains = 12;
#if defined(__AVX512VNNI__)
constexpr int kDotChains = 12, kFactors = 1;
#else
constexpr int kDotChains = 6, kFactors = kDotChains;
#endif
constexpr int kStreams = 4;  // of loads

// The compiler may not know the value any more: otherwise it would compute a loop of constants once.
template <class T>
OCTAVO_INLINE void opaque(T& x) {
#if defined(__AVX512F__)
    asm volatile("" : "+v"(x));
#elif defined(__SSE2__)
    asm volatile("" : "+x"(x));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(x));
#else
    asm volatile("" : "+m"(x));
#endif
}

constexpr int kBytes = sizeof(vi);  // products of one step

static int32_t fold(vi x) {
    int32_t lanes[sizeof(vi) / 4], sum = 0;
    vi_store(lanes, x);
    for (int32_t lane : lanes) sum ^= lane;
    return sum;
}

static int32_t read(const void* memory, int64_t bytes) {
    const char* p = static_cast<const char*>(memory);
    vi sums[kStreams];
    for (vi& sum : sums) sum = vi_set(0);
    for (int64_t i = 0; i < bytes; i += kStreams * sizeof(vi))
        for (int k = 0; k < kStreams; ++k) sums[k] = vi_add(sums[k], vi_load(p + i + k * sizeof(vi)));
    for (int k = 1; k < kStreams; ++k) sums[0] = vi_add(sums[0], sums[k]);
    return fold(sums[0]);
}

static float multiply_add(int64_t steps) {
    vf acc[kChains], x = vf_set(0.5f), y = vf_set(1.0f);
    for (vf& a : acc) a = y;
    for (int64_t i = 0; i < steps; ++i) {
        for (vf& a : acc) a = vf_fma(a, x, y);
        opaque(x);
    }
    for (int k = 1; k < kChains; ++k) acc[0] = vf_add(acc[0], acc[k]);
    return vf_sum(acc[0]);
}

static int32_t dot_int8(int64_t steps) {
    vi acc[kDotChains], y[kFactors], x = vi_set(0x01010101);
    for (vi& a : acc) a = vi_set(0);
    for (int k = 0; k < kFactors; ++k) y[k] = vi_set(0x01010101 * (k + 1));
    for (int64_t i = 0; i < steps; ++i) {
        for (int k = 0; k < kDotChains; ++k) acc[k] = vi_dot4(acc[k], x, y[k % kFactors]);
        opaque(x);
    }
    for (int k = 1; k < kDotChains; ++k) acc[0] = vi_add(acc[0], acc[k]);
    return fold(acc[0]);
}

extern const PeakKernels peak_kernels = {
    read, multiply_add, dot_int8, int64_t(2) * kChains * VW, int64_t(2) * kDotChains * kBytes,
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
