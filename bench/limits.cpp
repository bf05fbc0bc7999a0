// What this machine can do at best, with all its threads: reading memory, float32 multiply-adds, int8 dot products.
// Build with -O3 -march=native -pthread. Prints one line of JSON. Run it beside the measurement that it is to judge:
// a neighbour on the same machine lowers both.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The shortest of `rounds` runs of work(thread) on all threads.
template <class Work>
static double best_time(int threads, int rounds, Work work) {
  double best = 1e30;
  for (int round = 0; round < rounds; round++) {
    std::vector<std::thread> pool;
    const double start = seconds();
    for (int t = 0; t < threads; t++) pool.emplace_back(work, t);
    for (auto& thread : pool) thread.join();
    best = std::min(best, seconds() - start);
  }
  return best;
}

static volatile int64_t sink;  // what is computed must be used

#if defined(__AVX512F__)
using Ints = __m512i;
using Floats = __m512;
static Ints load(const char* p) { return _mm512_load_si512(p); }
static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static Floats floats(float x) { return _mm512_set1_ps(x); }
static Ints bytes(char x) { return _mm512_set1_epi8(x); }
#if defined(__AVX512VNNI__)
static Ints dot(Ints acc, Ints a, Ints b) { return _mm512_dpbusd_epi32(acc, a, b); }
#else
static Ints dot(Ints acc, Ints a, Ints b) {
  return add(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)));
}
#endif
#elif defined(__AVX2__)
using Ints = __m256i;
using Floats = __m256;
static Ints load(const char* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static Floats floats(float x) { return _mm256_set1_ps(x); }
static Ints bytes(char x) { return _mm256_set1_epi8(x); }
#if defined(__AVXVNNI__)
static Ints dot(Ints acc, Ints a, Ints b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
#else
static Ints dot(Ints acc, Ints a, Ints b) {
  return add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#endif
#else
#error "limits.cpp knows AVX2 and AVX-512 only"
#endif

static int64_t fold(Ints x) {
  int32_t lanes[sizeof(Ints) / 4];
  std::memcpy(lanes, &x, sizeof x);
  int64_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

static double read_gb_per_s(int threads) {
  const size_t size = size_t{512} << 20;  // far beyond every cache
  char* memory = static_cast<char*>(std::aligned_alloc(4096, size));
  std::memset(memory, 1, size);
  const size_t share = size / threads / 4096 * 4096;
  const double time = best_time(threads, 7, [=](int t) {
    const char* p = memory + t * share;
    Ints sums[4] = {bytes(0), bytes(0), bytes(0), bytes(0)};
    for (size_t i = 0; i < share; i += 4 * sizeof(Ints))
      for (int k = 0; k < 4; k++) sums[k] = add(sums[k], load(p + i + k * sizeof(Ints)));
    sink = fold(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  });
  std::free(memory);
  return share * threads / time / 1e9;
}

constexpr int kChains = 12;  // independent accumulators: enough to hide the latency of one operation
constexpr int64_t kSteps = 4'000'000;

static double float_gflop_per_s(int threads) {
  const double time = best_time(threads, 5, [](int t) {
    Floats acc[kChains], x = floats(0.5f), y = floats(1.0f + t);
    for (auto& a : acc) a = floats(1.0f);
    for (int64_t i = 0; i < kSteps; i++) {
      for (auto& a : acc) a = fma(a, x, y);
      __asm__ volatile("" : "+v"(x));
    }
    float lane;
    for (int k = 1; k < kChains; k++) acc[0] = fma(acc[0], x, acc[k]);
    std::memcpy(&lane, &acc[0], sizeof lane);
    sink = static_cast<int64_t>(lane);
  });
  return 2.0 * kSteps * kChains * (sizeof(Floats) / 4) * threads / time / 1e9;
}

static double int8_gop_per_s(int threads) {
  const double time = best_time(threads, 5, [](int t) {
    Ints acc[kChains], x = bytes(3), y = bytes(static_cast<char>(t + 1));
    for (auto& a : acc) a = bytes(0);
    for (int64_t i = 0; i < kSteps; i++) {
      for (auto& a : acc) a = dot(a, x, y);
      __asm__ volatile("" : "+v"(x));
    }
    for (int k = 1; k < kChains; k++) acc[0] = add(acc[0], acc[k]);
    sink = fold(acc[0]);
  });
  return 2.0 * kSteps * kChains * sizeof(Ints) * threads / time / 1e9;
}

int main() {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::printf("{\"threads\": %d, \"memory_read_gb_s\": %.1f, ", threads, read_gb_per_s(threads));
  std::printf("\"float32_gflop_s\": %.0f, ", float_gflop_per_s(threads));
  std::printf("\"int8_gop_s\": %.0f}\n", int8_gop_per_s(threads));
  return 0;
}
