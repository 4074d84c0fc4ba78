// Parts that the kernels share. Every kernel computes a row, or an item, in an order that depends on nothing else.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "vector.h"

namespace assay {

// Number of consecutive k of a column that oneDNN's small-matrix kernels need side by side: two bf16, one float.
template <typename T>
constexpr int64_t kPair = sizeof(T) == 2 ? 2 : 1;

// Computes C[m, n] = A[m, k] B[k, n], or adds it to C; B is laid out in pairs, C is fp32. The order of summation in a
// row of C does not depend on m.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, float* c, bool add = false) {
  at::native::cpublas::brgemm(m, n, k, lda, n, n, add, a, b, c, kPair<T> == 2);
}

// Releases the matrix unit (AMX) when a thread has finished its products, also after an exception.
template <typename T>
struct Unit {
  Unit() = default;
  Unit(const Unit&) = delete;
  Unit& operator=(const Unit&) = delete;
  ~Unit() { at::native::cpublas::brgemm_release(kPair<T> == 2); }
};

// Uninitialised memory that begins on a cache line, so that the alignment never selects another code path.
template <typename T>
struct Scratch {
  explicit Scratch(int64_t n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64)), std::free) {
    TORCH_CHECK_WITH(OutOfMemoryError, data, "out of memory: scratch of ", n * sizeof(T), " bytes");
  }
  T* get() { return data.get(); }
  std::unique_ptr<T, decltype(&std::free)> data;
};

// Scratch memory that is reused, and allocated again only if a larger size is requested than before.
template <typename T>
struct Growing {
  T* get(int64_t n) {
    if (n > size) {
      scratch = std::make_unique<Scratch<T>>(size = n);
    }
    return scratch->get();
  }
  int64_t size = 0;
  std::unique_ptr<Scratch<T>> scratch;
};

// Calls `f` with the element type of a tensor.
template <typename F>
void with_type(const at::Tensor& tensor, const F& f) {
  if (tensor.scalar_type() == at::kBFloat16) {
    f(at::BFloat16());
  } else {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat, "bfloat16 or float32, not ", tensor.scalar_type());
    f(float());
  }
}

// Stores two vectors, rounded to the nearest.
inline void store(const Vec& low, const Vec& high, at::BFloat16* to) {
#ifdef __AVX512BF16__
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
#else
  float line[2 * kLanes];
  low.store(line);
  high.store(line + kLanes);
  std::copy_n(line, 2 * kLanes, to);
#endif
}

inline void store(const Vec& low, const Vec& high, float* to) {
  low.store(to);
  high.store(to + kLanes);
}

template <typename T>
void store(const float* from, T* to, int64_t n) {
  constexpr int64_t step = 2 * kLanes;
  int64_t i = 0;
  for (; i + step <= n; i += step) store(Vec::loadu(from + i), Vec::loadu(from + i + kLanes), to + i);
  for (; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

constexpr float kLog2E = 1.4426950408889634f;

// Returns 2 to the power of x <= 126, with a relative error of 3e-7; 0 below -126, NaN for NaN. The argument is reduced
// to [-1/2, 1/2], then a Taylor polynomial of degree 6 is used, whose remainder is 1e-7 there.
inline Vec power_of_2(const Vec& x) {
  const Vec shifted = max(Vec(-126.f), x), whole = round(shifted), part = shifted - whole;
  Vec p = fmadd(Vec(1.5403530e-4f), part, Vec(1.3333558e-3f));
  p = fmadd(p, part, Vec(9.6181291e-3f));
  p = fmadd(p, part, Vec(5.5504109e-2f));
  p = fmadd(p, part, Vec(2.4022651e-1f));
  p = fmadd(p, part, Vec(6.9314718e-1f));
  p = fmadd(p, part, Vec(1.f));
  return choose_below(x, -126.f, Vec(0.f), scale_by_power(p, whole));
}

// Returns x / (1 + e^-y), with a relative error of 3e-7; 0 where e^-y overflows. The quotient is exact to the last bit: an
// estimate with a Newton step would be faster, but estimates differ between CPUs.
inline Vec times_sigmoid(const Vec& x, const Vec& y) {
  const Vec exponent = y * Vec(-kLog2E), below = Vec(1.f) + power_of_2(min(Vec(126.f), exponent));
  return choose_below(y * Vec(kLog2E), -126.f, Vec(0.f), x / below);
}

// Returns tanh(x), with a relative error of 2e-7: near 0 by the polynomial of Cephes' tanhf, elsewhere by the exponential.
inline Vec tanh(const Vec& x) {
  const Vec square = x * x, size = magnitude(x);
  Vec p = fmadd(Vec(-5.70498872745e-3f), square, Vec(2.06390887954e-2f));
  p = fmadd(p, square, Vec(-5.37397155531e-2f));
  p = fmadd(p, square, Vec(1.33314422036e-1f));
  p = fmadd(p, square, Vec(-3.33332819422e-1f));
  const Vec near = fmadd(p * square, x, x), shrunk = power_of_2(size * Vec(-2.f * kLog2E));
  const Vec far = (Vec(1.f) - shrunk) / (Vec(1.f) + shrunk);
  return choose_below(size, 0.625f, near, choose_below(x, 0.f, Vec(0.f) - far, far));
}

}  // namespace assay
