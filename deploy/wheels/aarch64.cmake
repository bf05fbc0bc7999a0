# Compiles for aarch64 Linux with Debian's g++-aarch64-linux-gnu; PYTHON_INCLUDE has that platform's Python.h.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_STRIP aarch64-linux-gnu-strip)
# Libraries and headers of the target only; programs, and the packages of CMake, are those of this machine.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
# Debian's pyconfig.h includes that of the platform by a path below /usr/include.
set(CMAKE_CXX_FLAGS_INIT "-idirafter $ENV{PYTHON_INCLUDE}/..")
