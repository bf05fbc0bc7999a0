// Instruction-set levels and how a kernel group is bound to one of them.
//
// A kernel group is a plain struct of function pointers, defined in kernels/<group>.h. Its table is declared once for all
// levels with OCTAVO_DECLARE_KERNELS, defined in kernels/<group>.cpp inside `namespace octavo::OCTAVO_ISA`, and reached from
// the bindings with OCTAVO_KERNELS(table). kernels/*.cpp are compiled once per level; they include C headers only and keep
// every helper static, because an inline function compiled with wider instructions could otherwise be the copy that the
// linker keeps for everybody.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define OCTAVO_X86 1
#endif

namespace octavo {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_vnni = 3 };

// The level in use. Set at import from cpuid or OCTAVO_ISA; changed by set_isa only.
Isa active_isa();

}  // namespace octavo

#ifdef OCTAVO_X86
#define OCTAVO_DECLARE_KERNELS(Type, table)                \
    namespace portable { extern const Type table; }        \
    namespace avx2 { extern const Type table; }            \
    namespace avx512 { extern const Type table; }          \
    namespace avx512_vnni { extern const Type table; }
#define OCTAVO_KERNELS(table)                                                             \
    (::octavo::active_isa() == ::octavo::Isa::avx512_vnni ? ::octavo::avx512_vnni::table  \
     : ::octavo::active_isa() == ::octavo::Isa::avx512    ? ::octavo::avx512::table       \
     : ::octavo::active_isa() == ::octavo::Isa::avx2      ? ::octavo::avx2::table         \
                                                          : ::octavo::portable::table)
#else
#define OCTAVO_DECLARE_KERNELS(Type, table) \
    namespace portable { extern const Type table; }
#define OCTAVO_KERNELS(table) (::octavo::portable::table)
#endif
