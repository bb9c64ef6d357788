// The Metal Shading Language for C++, as far as kernels of MLX use it.
#pragma once
#include "atomic.h"

// Metal has no such type, so a kernel that names it must not compile here either.
#define double mb_metal_has_no_double
