// The exponential of what is never positive: weights relative to the best.
#pragma once

#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

// e^x for x <= 0; 0 below -87.3; a NaN gives a NaN.
OCTAVO_INLINE vf exp_nonpositive(vf x) {
    const vf lo = vf_set(-87.33654f);
    const vf c = vf_max(lo, x);
    const vf n = vf_round(vf_mul(c, vf_set(1.44269504f)));
    vf r = vf_fma(n, vf_set(-0.693359375f), c);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set(1.0f));
    return vf_select_lt(x, lo, vf_zero(), vf_mul(p, vf_pow2i(n)));
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
