// Bindings for octavo.bench: the pool reads memory or computes, and the caller takes the time.
#include "kernels/peak.h"
#include "pool.h"
#include "runtime.h"

#include <algorithm>
#include <atomic>

namespace nb = nanobind;

namespace octavo {

namespace {

constexpr int64_t kChunk = int64_t(1) << 20;  // bytes of a task: a thread that starts late finds work left
constexpr int64_t kTasks = 32;                // of arithmetic, for each thread

std::atomic<int64_t> g_sink;  // what is computed must be used

void read_memory(uintptr_t memory, int64_t bytes) {
    nb::gil_scoped_release release;
    const auto& kernels = OCTAVO_KERNELS(peak_kernels);
    parallel_for((bytes + kChunk - 1) / kChunk, [&](int64_t task, int) {
        const int64_t from = task * kChunk;
        g_sink = kernels.read(reinterpret_cast<const char*>(memory) + from, std::min(kChunk, bytes - from));
    });
}

// Both return how many operations all threads did together.
int64_t multiply_add(int64_t steps) {
    nb::gil_scoped_release release;
    const auto& kernels = OCTAVO_KERNELS(peak_kernels);
    const int64_t tasks = kTasks * num_threads();
    parallel_for(tasks, [&](int64_t, int) { g_sink = int64_t(kernels.multiply_add(steps)); });
    return tasks * steps * kernels.float_ops;
}

int64_t dot_int8(int64_t steps) {
    nb::gil_scoped_release release;
    const auto& kernels = OCTAVO_KERNELS(peak_kernels);
    const int64_t tasks = kTasks * num_threads();
    parallel_for(tasks, [&](int64_t, int) { g_sink = kernels.dot_int8(steps); });
    return tasks * steps * kernels.int8_ops;
}

}  // namespace

void bind_peak(nb::module_& m) {
    m.def("read_memory", &read_memory, nb::arg("memory"), nb::arg("num_bytes"));
    m.def("multiply_add", &multiply_add, nb::arg("steps"));
    m.def("dot_int8", &dot_int8, nb::arg("steps"));
}

}  // namespace octavo
