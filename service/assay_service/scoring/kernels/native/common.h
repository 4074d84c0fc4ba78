// Parts that the kernels share. Every kernel computes a row, or an item, in an order that depends on nothing else.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>

#include <cstdlib>
#include <memory>
#include <type_traits>

namespace assay {

using Vec = at::vec::Vectorized<float>;

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

inline Vec load(const at::BFloat16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return Vec(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
}

inline Vec load(const at::Half* from) {
  return Vec(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

inline Vec load(const float* from) { return Vec::loadu(from); }

// Stores two vectors of sixteen numbers, rounded to the nearest.
inline void store(const Vec& low, const Vec& high, at::BFloat16* to) {
#ifdef __AVX512BF16__
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
#else
  at::vec::convert_float_bfloat16(low, high).store(to);
#endif
}

inline void store(const Vec& low, const Vec& high, float* to) {
  low.store(to);
  high.store(to + Vec::size());
}

template <typename T>
void store(const float* from, T* to, int64_t n) {
  constexpr int64_t step = 2 * Vec::size();
  int64_t i = 0;
  for (; i + step <= n; i += step) store(Vec::loadu(from + i), Vec::loadu(from + i + Vec::size()), to + i);
  for (; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

inline float sum(const Vec& v) { return _mm512_reduce_add_ps(v); }

constexpr float kLog2E = 1.4426950408889634f;

// Returns 2 to the power of x <= 126, with a relative error of 3e-7; 0 below -126, NaN for NaN. The argument is reduced
// to [-1/2, 1/2], then a Taylor polynomial of degree 6 is used, whose remainder is 1e-7 there.
inline Vec power_of_2(const Vec& x) {
  const __m512 least = _mm512_set1_ps(-126.f);
  const __mmask16 shown = _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ);  // also true for NaN, which must not become 0
  const __m512 shifted = _mm512_max_ps(least, x);
  const __m512 whole = _mm512_roundscale_ps(shifted, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(shifted, whole);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.5403530e-4f), part, _mm512_set1_ps(1.3333558e-3f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(1.f));
  return Vec(_mm512_maskz_scalef_ps(shown, p, whole));
}

// Returns x / (1 + e^-y), with a relative error of 3e-7: an estimate of the quotient and one Newton step. 0 where e^-y
// overflows.
inline Vec times_sigmoid(const Vec& x, const Vec& y) {
  const __m512 most = _mm512_set1_ps(126.f), exponent = _mm512_mul_ps(y, _mm512_set1_ps(-kLog2E));
  const __mmask16 open = _mm512_cmp_ps_mask(exponent, most, _CMP_NGT_UQ);  // also true for NaN
  const __m512 below = _mm512_add_ps(_mm512_set1_ps(1.f), power_of_2(Vec(_mm512_min_ps(most, exponent))));
  const __m512 estimate = _mm512_rcp14_ps(below);
  const __m512 better = _mm512_mul_ps(estimate, _mm512_fnmadd_ps(below, estimate, _mm512_set1_ps(2.f)));
  return Vec(_mm512_maskz_mul_ps(open, x, better));
}

}  // namespace assay
