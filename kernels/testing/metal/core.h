// Metal's keywords and scalar types in C++.
#pragma once
#include <stddef.h>
#include <type_traits>
#include "launch.h"

#define device
#define constant
#define thread
#define threadgroup
#define kernel

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

namespace metal {
using std::conditional_t;
using std::enable_if_t;
using std::is_same_v;
using std::is_integral_v;
using std::is_floating_point_v;
using std::is_same;
}  // namespace metal

template <class T>
using mb_element = std::remove_cv_t<std::remove_all_extents_t<T>>;

// The storage of a `threadgroup` array; the bench rewrites declarations to this.
template <class T>
MB_OWN T& mb_shared(const char* name, uint32_t id) {
  typedef mb_element<T> E;
  return *reinterpret_cast<T*>(mb_threadgroup(name, id, sizeof(T), sizeof(E), alignof(E)));
}
