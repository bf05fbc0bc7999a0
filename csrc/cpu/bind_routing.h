// A routing as Python passes it.
#pragma once

#include "kernels/experts.h"

#include <tuple>

namespace octavo {

// kind, renormalize, factor, num_groups, top_groups, group_best, jitter
using RoutingTuple = std::tuple<int, bool, float, int, int, int, float>;

inline Routing routing_of(const RoutingTuple& r) {
    return {ScoreKind(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r),
            std::get<4>(r),            std::get<5>(r), std::get<6>(r)};
}

}  // namespace octavo
