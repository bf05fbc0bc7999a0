#include "isa.h"

#include "runtime.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace octavo {

namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_vnni"};

bool cpu_has(Isa isa) {
    if (isa == Isa::portable) return true;
#ifdef OCTAVO_X86
    __builtin_cpu_init();
    bool ok = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == Isa::avx2) return ok;
    ok = ok && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == Isa::avx512) return ok;
    return ok && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

std::atomic<Isa> g_isa{Isa::portable};

}  // namespace

Isa active_isa() { return g_isa.load(std::memory_order_relaxed); }

std::string isa_name() { return kNames[static_cast<int>(active_isa())]; }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (int i = 0; i < 4; ++i)
        if (cpu_has(static_cast<Isa>(i))) names.emplace_back(kNames[i]);
    return names;
}

void set_isa(const std::string& name) {
    for (int i = 0; i < 4; ++i) {
        if (name != kNames[i]) continue;
        if (!cpu_has(static_cast<Isa>(i))) throw std::invalid_argument("this CPU cannot run instruction-set level '" + name + "'");
        g_isa.store(static_cast<Isa>(i));
        return;
    }
    throw std::invalid_argument("unknown instruction-set level '" + name + "' (portable, avx2, avx512, avx512_vnni)");
}

void init_isa() {
    const char* wanted = std::getenv("OCTAVO_ISA");
    set_isa(wanted && *wanted ? std::string(wanted) : available_isas().back());
}

}  // namespace octavo
