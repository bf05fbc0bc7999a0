#include "kernels/altup.h"

#include "kernels/channels.h"

namespace octavo {
namespace OCTAVO_ISA {

// Floats of all streams that one task handles.
constexpr int64_t kTaskFloats = 16384;

template <class F>
static void for_rows(const AltUpArgs& args, const F& each_row) {
    const int64_t floats = args.width * args.count, step = floats < kTaskFloats ? kTaskFloats / floats : 1;
    parallel_for((args.rows + step - 1) / step, [&](int64_t task, int) {
        for (int64_t row = task * step; row < (task + 1) * step && row < args.rows; ++row) each_row(row);
    });
}

// to[r] = coefs[r] . tanh(scores) for `rows` rows of coefficients.
static inline void mix(float* to, const AltUpArgs& args, int64_t row, int rows) {
    const int n = args.count;
    float t[kMaxStreams];
    for (int k = 0; k < n; ++k) t[k] = tanhf(args.scores[row * n + k]);
    for (int r = 0; r < rows; ++r) {
        float sum = 0.0f;
        for (int k = 0; k < n; ++k) sum += args.coefs[r * n + k] * t[k];
        to[r] = sum;
    }
}

static void predict(const AltUpArgs& args) {
    for_rows(args, [&](int64_t row) {
        const int n = args.count;
        float mixed[kMaxStreams * kMaxStreams];
        mix(mixed, args, row, n * n);
        for (int64_t c = 0; c < args.width; c += VW) {
            const int lanes = args.width - c < VW ? int(args.width - c) : VW;
            const int64_t at = row * args.width + c;
            vf x[kMaxStreams];
            for (int i = 0; i < n; ++i) x[i] = load(args.streams[i] + at, lanes);
            for (int j = 0; j < n; ++j) {
                vf sum = vf_zero();
                for (int i = 0; i < n; ++i) sum = vf_fma(x[i], vf_set(mixed[j * n + i]), sum);
                store(args.streams[j] + at, vf_add(sum, x[j]), lanes);
            }
        }
    });
}

static void correct(const AltUpArgs& args, float* out, const float* activated, int active, const float* scale) {
    for_rows(args, [&](int64_t row) {
        const int n = args.count;
        float mixed[kMaxStreams];
        mix(mixed, args, row, n);
        for (int64_t c = 0; c < args.width; c += VW) {
            const int lanes = args.width - c < VW ? int(args.width - c) : VW;
            const int64_t at = row * args.width + c;
            const vf before = load(args.streams[active] + at, lanes), news = vf_sub(load(activated + at, lanes), before);
            for (int j = 0; j < n; ++j) {
                const vf x = j == active ? before : load(args.streams[j] + at, lanes);
                const vf corrected = vf_fma(news, vf_set(mixed[j] + 1.0f), x);
                store(args.streams[j] + at, corrected, lanes);
                if (j == active) store(out + at, scale ? vf_mul(corrected, load(scale + c, lanes)) : corrected, lanes);
            }
        }
    });
}

extern const AltUpKernels altup_kernels = {predict, correct};

}  // namespace OCTAVO_ISA
}  // namespace octavo
