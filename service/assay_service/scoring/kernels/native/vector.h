// Sixteen numbers that are computed together: one register with AVX-512, two with AVX2. Every operation rounds as IEEE 754
// defines it, and sums have one order. So both give the same bits; the compiler must not fuse operations of its own.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <cstdint>

namespace assay {

constexpr int64_t kLanes = 16;

#ifdef __AVX512F__

struct Vec {
  __m512 v;

  Vec() = default;
  explicit Vec(__m512 from) : v(from) {}
  explicit Vec(float one) : v(_mm512_set1_ps(one)) {}
  static Vec loadu(const float* from) { return Vec(_mm512_loadu_ps(from)); }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
};

inline Vec operator+(const Vec& a, const Vec& b) { return Vec(_mm512_add_ps(a.v, b.v)); }
inline Vec operator-(const Vec& a, const Vec& b) { return Vec(_mm512_sub_ps(a.v, b.v)); }
inline Vec operator*(const Vec& a, const Vec& b) { return Vec(_mm512_mul_ps(a.v, b.v)); }
inline Vec operator/(const Vec& a, const Vec& b) { return Vec(_mm512_div_ps(a.v, b.v)); }
// Returns a * b + c, rounded once.
inline Vec fmadd(const Vec& a, const Vec& b, const Vec& c) { return Vec(_mm512_fmadd_ps(a.v, b.v, c.v)); }
// Returns a * b - c, rounded once.
inline Vec fmsub(const Vec& a, const Vec& b, const Vec& c) { return Vec(_mm512_fmsub_ps(a.v, b.v, c.v)); }
// Returns the larger number, and `b` where one is NaN.
inline Vec max(const Vec& a, const Vec& b) { return Vec(_mm512_max_ps(a.v, b.v)); }
inline Vec min(const Vec& a, const Vec& b) { return Vec(_mm512_min_ps(a.v, b.v)); }
inline Vec round(const Vec& a) { return Vec(_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
inline Vec magnitude(const Vec& a) { return Vec(_mm512_abs_ps(a.v)); }
// Returns `a` where x < bound, else `b`, also where x is NaN.
inline Vec choose_below(const Vec& x, float bound, const Vec& a, const Vec& b) {
  return Vec(_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_LT_OQ), b.v, a.v));
}
// Returns a * 2^n for whole numbers n from -126 to 127; NaN where `a` is NaN.
inline Vec scale_by_power(const Vec& a, const Vec& n) {
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return Vec(_mm512_mul_ps(a.v, _mm512_castsi512_ps(power)));
}
// Returns the sums of lanes i and i + 8.
inline __m256 add_halves(const Vec& a) {
  return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
}

// Sixteen integers of 32 bits.
struct Ints {
  __m512i v;
};

inline Ints load_ints(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
inline Ints operator+(const Ints& a, const Ints& b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator-(const Ints& a, const Ints& b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints max(const Ints& a, const Ints& b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline Ints all(int32_t one) { return {_mm512_set1_epi32(one)}; }
inline void store(const Ints& a, int32_t* to) { _mm512_storeu_si512(to, a.v); }
// Stores integers of 0 to 255 as bytes.
inline void store(const Ints& a, uint8_t* to) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.v)); }
inline Ints bits_of(const Vec& a) { return {_mm512_castps_si512(a.v)}; }
inline Ints to_nearest(const Vec& a) { return {_mm512_cvtps_epi32(a.v)}; }
inline Vec to_floats(const Ints& a) { return Vec(_mm512_cvtepi32_ps(a.v)); }

inline Vec load(const at::BFloat16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return Vec(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
}

inline Vec load(const at::Half* from) {
  return Vec(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

#else

struct Vec {
  __m256 a, b;  // lanes 0 to 7, and 8 to 15

  Vec() = default;
  Vec(__m256 a_, __m256 b_) : a(a_), b(b_) {}
  explicit Vec(float one) : a(_mm256_set1_ps(one)), b(a) {}
  static Vec loadu(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  void store(float* to) const {
    _mm256_storeu_ps(to, a);
    _mm256_storeu_ps(to + 8, b);
  }
};

inline Vec operator+(const Vec& x, const Vec& y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Vec operator-(const Vec& x, const Vec& y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Vec operator*(const Vec& x, const Vec& y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Vec operator/(const Vec& x, const Vec& y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Vec fmadd(const Vec& x, const Vec& y, const Vec& z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Vec fmsub(const Vec& x, const Vec& y, const Vec& z) {
  return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)};
}
inline Vec max(const Vec& x, const Vec& y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Vec min(const Vec& x, const Vec& y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Vec round(const Vec& x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline Vec magnitude(const Vec& x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Vec choose_below(const Vec& x, float bound, const Vec& yes, const Vec& no) {
  const __m256 limit = _mm256_set1_ps(bound);
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, limit, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, limit, _CMP_LT_OQ))};
}
inline __m256 power_of(const __m256& n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Vec scale_by_power(const Vec& x, const Vec& n) {
  return {_mm256_mul_ps(x.a, power_of(n.a)), _mm256_mul_ps(x.b, power_of(n.b))};
}
inline __m256 add_halves(const Vec& x) { return _mm256_add_ps(x.a, x.b); }

struct Ints {
  __m256i a, b;
};

inline Ints load_ints(const int32_t* from) {
  const auto* at = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline Ints operator+(const Ints& x, const Ints& y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints operator-(const Ints& x, const Ints& y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline Ints max(const Ints& x, const Ints& y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline Ints all(int32_t one) { return {_mm256_set1_epi32(one), _mm256_set1_epi32(one)}; }
inline void store(const Ints& x, int32_t* to) {
  auto* at = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(at, x.a);
  _mm256_storeu_si256(at + 1, x.b);
}
inline void store(const Ints& x, uint8_t* to) {
  // Packing takes 128 bits of each register in turn; the permutation restores the order.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), _MM_SHUFFLE(3, 1, 2, 0));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
inline Ints bits_of(const Vec& x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline Ints to_nearest(const Vec& x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Vec to_floats(const Ints& x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

inline __m256 widen_bf16(const at::BFloat16* from) {
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}
inline Vec load(const at::BFloat16* from) { return {widen_bf16(from), widen_bf16(from + 8)}; }

inline Vec load(const at::Half* from) {
  const auto* at = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}

#endif

inline Vec load(const float* from) { return Vec::loadu(from); }

// Transposes numbers of 32 bits: [8 rows, 8] -> [8, 8]; rows are `from_step` and `to_step` apart.
inline void transpose_8(const float* from, int64_t from_step, float* to, int64_t to_step) {
  __m256 pairs[8], quads[8];
  for (int r = 0; r < 8; r += 2) {
    const __m256 even = _mm256_loadu_ps(from + r * from_step), odd = _mm256_loadu_ps(from + (r + 1) * from_step);
    pairs[r] = _mm256_unpacklo_ps(even, odd);
    pairs[r + 1] = _mm256_unpackhi_ps(even, odd);
  }
  for (int r = 0; r < 8; r += 4)
    for (int i = 0; i < 2; ++i) {
      quads[r + 2 * i] = _mm256_shuffle_ps(pairs[r + i], pairs[r + i + 2], _MM_SHUFFLE(1, 0, 1, 0));
      quads[r + 2 * i + 1] = _mm256_shuffle_ps(pairs[r + i], pairs[r + i + 2], _MM_SHUFFLE(3, 2, 3, 2));
    }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_step, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_step, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
  }
}

// Returns the sum of all lanes: lanes 8 apart are added first, then 4, 2 and 1 apart.
inline float sum(const Vec& v) {
  const __m256 eight = add_halves(v);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace assay
