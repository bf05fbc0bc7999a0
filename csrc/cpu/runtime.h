// What the bindings share: the choice of the instruction-set level, and the functions that register each group's bindings.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <vector>

namespace octavo {

void init_isa();                        // picks the best level, or OCTAVO_ISA; throws std::invalid_argument when refused
void set_isa(const std::string& name);  // throws std::invalid_argument when unknown or not runnable here
std::string isa_name();
std::vector<std::string> available_isas();  // worst to best

void bind_program(nanobind::module_& m);  // after bind_linear and bind_lora
void bind_lora(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_step(nanobind::module_& m);
void bind_peak(nanobind::module_& m);

}  // namespace octavo
