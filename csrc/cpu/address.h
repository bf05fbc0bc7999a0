// Tensors cross from Python as plain integers: converting four of them by the array protocols costs more than a small
// kernel.
#pragma once

#include <cstdint>

namespace octavo {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace octavo
