// Products of 8-bit integers: by oneDNN where the CPU adds four of them without saturation (VNNI, AMX), else by 16-bit
// multiplication and addition, which cannot saturate.
#include "integer.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace assay {
namespace {

constexpr int64_t kTall = 8;    // rows that are computed at once without VNNI
constexpr int64_t kWide = 16;   // columns of one vector

void multiply_by_onednn(int64_t rows, int64_t columns, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c) {
  at::native::cpublas::brgemm(rows, columns, k, k, columns, columns, false, a, reinterpret_cast<const signed char*>(b), c, true);
}

// Computes up to kTall rows; `wide` is scratch for them, in 16 bits.
void multiply_tall(int64_t rows, int64_t columns, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c, int16_t* wide) {
  std::fill(wide, wide + kTall * k, int16_t(0));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < k; ++i) wide[r * k + i] = a[r * k + i];
  for (int64_t column = 0; column < columns; column += kWide) {
    __m512i low[kTall], high[kTall];  // sums of columns 0..7 and 8..15, two for each column
    for (int64_t r = 0; r < kTall; ++r) low[r] = high[r] = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += kQuad) {
      const auto* four = reinterpret_cast<const __m256i*>(b + (i / kQuad * columns + column) * kQuad);
      const __m512i left = _mm512_cvtepi8_epi16(_mm256_loadu_si256(four)), right = _mm512_cvtepi8_epi16(_mm256_loadu_si256(four + 1));
      for (int64_t r = 0; r < kTall; ++r) {
        int64_t quad;
        std::memcpy(&quad, wide + r * k + i, sizeof quad);
        const __m512i input = _mm512_set1_epi64(quad);
        low[r] = _mm512_add_epi32(low[r], _mm512_madd_epi16(input, left));
        high[r] = _mm512_add_epi32(high[r], _mm512_madd_epi16(input, right));
      }
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int64_t r = 0; r < rows; ++r)
      _mm512_storeu_si512(c + r * columns + column, _mm512_add_epi32(_mm512_permutex2var_epi32(low[r], even, high[r]),
                                                                     _mm512_permutex2var_epi32(low[r], odd, high[r])));
  }
}

void multiply_plainly(int64_t rows, int64_t columns, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c) {
  Scratch<int16_t> wide(kTall * k);
  for (int64_t r = 0; r < rows; r += kTall)
    multiply_tall(std::min(kTall, rows - r), columns, k, a + r * k, b, c + r * columns, wide.get());
}

// Returns whether oneDNN's product of the largest numbers is exact here: instructions before VNNI saturate in 16 bits.
bool try_onednn() {
  constexpr int64_t k = 64, n = 16;
  Scratch<uint8_t> a(k);
  Scratch<int8_t> b(k * n);
  Scratch<int32_t> c(n);
  try {
    for (const int sign : {1, -1}) {
      std::fill(a.get(), a.get() + k, uint8_t(255));
      std::fill(b.get(), b.get() + k * n, static_cast<int8_t>(sign * 127));
      multiply_by_onednn(1, n, k, a.get(), b.get(), c.get());
      if (c.get()[n - 1] != sign * 255 * 127 * k) return false;
    }
  } catch (const std::exception&) {  // oneDNN has no such kernel
    return false;
  }
  return true;
}

// Quantises one row of k numbers, and returns its scale.
float quantise_row(const float* from, int64_t k, uint8_t* to) {
  // As integers, the bits of magnitudes have the order of the magnitudes, and those of NaN are above those of infinity.
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top = _mm512_setzero_si512();
  const auto rest = [k](int64_t i) { return static_cast<__mmask16>(k - i >= kWide ? 0xffff : (1 << (k - i)) - 1); };
  for (int64_t i = 0; i < k; i += kWide)
    top = _mm512_max_epi32(top, _mm512_and_si512(_mm512_maskz_loadu_epi32(rest(i), from + i), magnitude));
  const int32_t bits = _mm512_reduce_max_epi32(top);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  const float factor = kLargest / largest;
  if (!std::isfinite(largest) || !std::isfinite(factor)) {  // zeros have no factor, and nor have numbers near them
    std::fill(to, to + k, static_cast<uint8_t>(kZero));
    return std::isfinite(largest) ? 0.f : std::numeric_limits<float>::quiet_NaN();
  }
  const __m512 scale = _mm512_set1_ps(factor);
  const __m512i zero = _mm512_set1_epi32(kZero);
  for (int64_t i = 0; i < k; i += kWide) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(rest(i), from + i), scale));
    _mm512_mask_cvtusepi32_storeu_epi8(to + i, rest(i), _mm512_add_epi32(whole, zero));
  }
  return largest / kLargest;
}

}  // namespace

Quantised quantise(const at::Tensor& x) {
  const int64_t m = x.size(0), k = x.size(1);
  Quantised made{Scratch<uint8_t>(m * k), Scratch<float>(m)};
  const float* in = x.const_data_ptr<float>();
  uint8_t* numbers = made.numbers.get();
  float* scales = made.scales.get();
  at::parallel_for(0, m, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) scales[row] = quantise_row(in + row * k, k, numbers + row * k);
  });
  return made;
}

at::Tensor pack_integers(const at::Tensor& numbers, const at::Tensor& scales, int64_t columns) {
  const int64_t n = numbers.size(0), k = numbers.size(1), panels = (n + columns - 1) / columns;
  TORCH_CHECK(numbers.scalar_type() == at::kChar && k % kQuad == 0 && k <= kMostInputs, "integers of ", k, " inputs");
  TORCH_CHECK(scales.scalar_type() == at::kFloat && scales.numel() == n, "scales");
  auto padded = at::zeros({panels * columns, k}, numbers.options());
  padded.narrow(0, 0, n).copy_(numbers);
  auto factors = at::zeros({panels * columns}, scales.options());
  factors.narrow(0, 0, n).copy_(scales);
  const auto sums = (padded.sum(1) * kZero).to(at::kInt);
  const auto as_row = [&](const at::Tensor& t) { return t.view(at::kChar).view({panels, 1, columns, kQuad}); };
  const auto panel = padded.view({panels, columns, k / kQuad, kQuad}).permute({0, 2, 1, 3});
  return at::cat({panel, as_row(factors), as_row(sums)}, 1).contiguous();
}

void multiply_integers(int64_t rows, int64_t columns, int64_t k, const uint8_t* a, const float* scales, const int8_t* panel,
                       int32_t* sums, float* tile) {
  static const bool exact = try_onednn();
  (exact ? multiply_by_onednn : multiply_plainly)(rows, columns, k, a, panel, sums);
  const auto* factors = reinterpret_cast<const float*>(panel + k * columns);
  const auto* zeros = reinterpret_cast<const int32_t*>(factors + columns);
  for (int64_t r = 0; r < rows; ++r) {
    const __m512 scale = _mm512_set1_ps(scales[r]);
    for (int64_t j = 0; j < columns; j += kWide) {
      const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums + r * columns + j), _mm512_loadu_si512(zeros + j));
      const __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(factors + j));
      _mm512_storeu_ps(tile + r * columns + j, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor));
    }
  }
}

}  // namespace assay
