// The process's pool of compute threads.
//
// parallel_for runs fn(ctx, task, thread) for every task in [0, n). The caller takes part as thread 0; workers are
// 1 .. num_threads()-1. Every thread has a share of consecutive tasks, takes them in order, and helps the others when it is
// through: what one task reads or asks for ahead is mostly the same thread's next, and a thread that lost its core holds up
// nobody. Which thread runs a task is therefore not fixed: a kernel's result must depend on the task alone. Calls from
// several threads are served one after the other; a task must not call parallel_for.
//
// A worker that runs out of work spins for a few tens of microseconds (the gap between two kernels of a step), then parks:
// a pool that spins longer takes the core away from the server's own threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

using TaskFn = void (*)(void* ctx, int64_t task, int thread);

void parallel_for(int64_t n, TaskFn fn, void* ctx);

// A callable instead of a function pointer: parallel_for(n, [&](int64_t task, int thread) { ... }).
template <class F>
static inline void parallel_for(int64_t n, const F& f) {
    parallel_for(
        n, [](void* ctx, int64_t task, int thread) { (*static_cast<const F*>(ctx))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&f)));
}

// At least 1. The new size holds from the next parallel_for on.
void set_num_threads(int n);
int num_threads();

// 64-byte aligned scratch of one thread, valid until that thread asks again. Grows and is kept: a warm step allocates nothing.
void* thread_scratch(int thread, size_t bytes);

// The same for the calling side of a kernel, shared by all tasks of one parallel_for. Only valid under KernelLock.
void* shared_scratch(size_t bytes);

// Held by a binding that uses shared_scratch around its parallel_for calls.
class KernelLock {
public:
    KernelLock();
    ~KernelLock();
    KernelLock(const KernelLock&) = delete;
    KernelLock& operator=(const KernelLock&) = delete;
};

}  // namespace octavo
