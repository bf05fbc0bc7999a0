#include "pool.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

namespace octavo {

namespace {

constexpr auto kSpin = std::chrono::microseconds(40);
constexpr uint32_t kClosed = 0xffffffffu;
constexpr int kMaxThreads = 256;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins while value == old, for kSpin at the most; true when it changed.
bool spin_while(const std::atomic<uint32_t>& value, uint32_t old) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (value.load(std::memory_order_acquire) != old) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

struct Buffer {
    void* data = nullptr;
    size_t size = 0;

    void* at_least(size_t bytes) {
        if (bytes > size) {
            std::free(data);
            size = (bytes + 4095) / 4096 * 4096;
            data = std::aligned_alloc(4096, size);
            if (!data) {
                size = 0;
                throw std::bad_alloc();
            }
        }
        return data;
    }
};

// One job at a time. The ticket of a share holds (epoch << 32 | next task); a worker claims a task by compare-and-swap, so one
// that is late for an epoch can never claim a task of the next. The job's fields are written while all tickets are closed
// (their low halves at kClosed), hence never while a claim could succeed.
class Pool {
public:
    void run(int64_t n, TaskFn fn, void* ctx) {
        if (n <= 0) return;
        std::lock_guard lock(mutex_);
        if (n == 1 || size_ == 1) {
            for (int64_t i = 0; i < n; ++i) fn(ctx, i, 0);
            return;
        }
        const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
        for (int share = 0; share < size_; ++share)
            shares_[share].ticket.store(uint64_t(epoch) << 32 | kClosed, std::memory_order_release);
        fn_.store(fn, std::memory_order_release);
        ctx_.store(ctx, std::memory_order_release);
        count_.store(static_cast<uint32_t>(n), std::memory_order_release);
        left_.store(static_cast<uint32_t>(n), std::memory_order_release);
        for (int share = 0; share < size_; ++share)
            shares_[share].ticket.store(uint64_t(epoch) << 32 | begin_of(share, n), std::memory_order_release);
        epoch_.store(epoch, std::memory_order_seq_cst);
        epoch_.notify_all();
        work(epoch, 0);
        for (uint32_t left; (left = left_.load(std::memory_order_acquire)) != 0;)
            if (!spin_while(left_, left)) left_.wait(left, std::memory_order_acquire);
    }

    void resize(int n) {
        if (n < 1 || n > kMaxThreads) throw std::invalid_argument("the number of threads must be between 1 and 256");
        std::lock_guard lock(mutex_);
        stop_.store(true);
        epoch_.fetch_add(1);
        epoch_.notify_all();
        for (auto& t : threads_) t.join();
        threads_.clear();
        stop_.store(false);
        size_ = n;
        const uint32_t epoch = epoch_.load();
        for (int i = 1; i < n; ++i) threads_.emplace_back([this, i, epoch] { loop(i, epoch); });
    }

    int size() const { return size_; }
    Buffer scratch[kMaxThreads];
    Buffer shared;
    std::mutex kernel_mutex;

private:
    void loop(int thread, uint32_t seen) {
        for (;;) {
            if (!spin_while(epoch_, seen)) epoch_.wait(seen, std::memory_order_acquire);
            const uint32_t epoch = epoch_.load(std::memory_order_acquire);
            if (epoch == seen) continue;
            if (stop_.load()) return;
            seen = epoch;
            work(epoch, thread);
        }
    }

    struct alignas(64) Share {
        std::atomic<uint64_t> ticket{kClosed};
    };

    // The first of n tasks that belongs to a share.
    uint32_t begin_of(int share, int64_t n) const { return static_cast<uint32_t>(n * share / size_); }

    void work(uint32_t epoch, int thread) {
        const int size = size_;
        for (int i = 0; i < size; ++i) take((thread + i) % size, epoch, thread);
    }

    // Runs what is left of a share.
    void take(int share, uint32_t epoch, int thread) {
        std::atomic<uint64_t>& of = shares_[share].ticket;
        uint64_t ticket = of.load(std::memory_order_acquire);
        for (;;) {
            const uint32_t task = static_cast<uint32_t>(ticket);
            if (ticket >> 32 != epoch || task >= begin_of(share + 1, count_.load(std::memory_order_acquire))) return;
            const TaskFn fn = fn_.load(std::memory_order_acquire);
            void* const ctx = ctx_.load(std::memory_order_acquire);
            if (!of.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            fn(ctx, task, thread);
            if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1 && thread != 0) left_.notify_one();
            ticket = of.load(std::memory_order_acquire);
        }
    }

    Share shares_[kMaxThreads];
    alignas(64) std::atomic<uint32_t> left_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<TaskFn> fn_{nullptr};
    std::atomic<void*> ctx_{nullptr};
    std::atomic<uint32_t> count_{0};
    std::atomic<bool> stop_{false};
    std::atomic<int> size_{1};
    std::mutex mutex_;
    std::vector<std::thread> threads_;
};

// Never destroyed: its threads sleep until the process ends, and a static destructor would have to race them.
Pool& pool() {
    static Pool* const p = new Pool;
    return *p;
}

}  // namespace

void parallel_for(int64_t n, TaskFn fn, void* ctx) { pool().run(n, fn, ctx); }

void set_num_threads(int n) { pool().resize(n); }

int num_threads() { return pool().size(); }

void* thread_scratch(int thread, size_t bytes) { return pool().scratch[thread].at_least(bytes); }

void* shared_scratch(size_t bytes) { return pool().shared.at_least(bytes); }

KernelLock::KernelLock() { pool().kernel_mutex.lock(); }

KernelLock::~KernelLock() { pool().kernel_mutex.unlock(); }

}  // namespace octavo
