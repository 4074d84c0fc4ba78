// Products of 8-bit integers: by oneDNN where the CPU adds four of them without saturation (VNNI, AMX), else by an
// instruction that adds two in 16 bits, on magnitudes of at most 127, whose sums 2 * 127 * 127 cannot saturate.
#include "integer.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace assay {
namespace {

constexpr int64_t kTall = 3;     // rows of a tile without VNNI: with 16 columns, its sums stay in registers
constexpr int64_t kHigh = 24;    // rows whose magnitudes and signs are at hand while columns pass

void multiply_by_onednn(int64_t rows, int64_t columns, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c) {
  at::native::cpublas::brgemm(rows, columns, k, k, columns, columns, false, a, reinterpret_cast<const signed char*>(b), c, true);
}

// Adds the products of four numbers of a row with four of each of 8 columns. The row has magnitudes, and the columns get its
// signs; -128, whose sign cannot change, does not occur.
inline __m256i add_quads(const __m256i& sums, const __m256i& magnitudes, const __m256i& signs, const __m256i& columns) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(columns, signs));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

inline __m256i repeat_quad(const int8_t* four) {
  int32_t quad;
  std::memcpy(&quad, four, sizeof quad);
  return _mm256_set1_epi32(quad);
}

// Computes R rows of 16 columns. `numbers` are signed, and `magnitudes` their absolute values, both [R, k].
template <int64_t R>
void multiply_tile(int64_t columns, int64_t k, const int8_t* numbers, const int8_t* magnitudes, const int8_t* b, int32_t* c) {
  __m256i left[R], right[R];
  for (int64_t r = 0; r < R; ++r) left[r] = right[r] = _mm256_setzero_si256();
  for (int64_t i = 0; i < k; i += kQuad) {
    const auto* at = reinterpret_cast<const __m256i*>(b + i * columns);
    const __m256i first = _mm256_loadu_si256(at), second = _mm256_loadu_si256(at + 1);
    for (int64_t r = 0; r < R; ++r) {
      const __m256i signs = repeat_quad(numbers + r * k + i), sizes = repeat_quad(magnitudes + r * k + i);
      left[r] = add_quads(left[r], sizes, signs, first);
      right[r] = add_quads(right[r], sizes, signs, second);
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    auto* to = reinterpret_cast<__m256i*>(c + r * columns);
    _mm256_storeu_si256(to, left[r]);
    _mm256_storeu_si256(to + 1, right[r]);
  }
}

// Computes the sums of signed products, [rows, columns], without VNNI.
void multiply_plainly(int64_t rows, int64_t columns, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c) {
  Scratch<int8_t> scratch(2 * kHigh * k);
  int8_t *numbers = scratch.get(), *magnitudes = numbers + kHigh * k;
  for (int64_t start = 0; start < rows; start += kHigh) {
    const int64_t high = std::min(kHigh, rows - start);
    for (int64_t i = 0; i < high * k; ++i) {
      numbers[i] = static_cast<int8_t>(a[start * k + i] - kZero);
      magnitudes[i] = static_cast<int8_t>(numbers[i] < 0 ? -numbers[i] : numbers[i]);
    }
    for (int64_t column = 0; column < columns; column += kLanes) {
      int64_t r = 0;
      int32_t* to = c + start * columns + column;
      for (; r + kTall <= high; r += kTall)
        multiply_tile<kTall>(columns, k, numbers + r * k, magnitudes + r * k, b + column * kQuad, to + r * columns);
      for (; r < high; ++r) multiply_tile<1>(columns, k, numbers + r * k, magnitudes + r * k, b + column * kQuad, to + r * columns);
    }
  }
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

// Loads up to 16 numbers; zeros fill the vector.
Vec load_some(const float* from, int64_t n) {
  if (n >= kLanes) return Vec::loadu(from);
  float line[kLanes] = {};
  std::copy_n(from, n, line);
  return Vec::loadu(line);
}

// Quantises one row of k numbers, and returns its scale.
float quantise_row(const float* from, int64_t k, uint8_t* to) {
  // As integers, the bits of magnitudes have the order of the magnitudes, and those of NaN are above those of infinity.
  Ints top = all(0);
  for (int64_t i = 0; i < k; i += kLanes) top = max(top, bits_of(magnitude(load_some(from + i, k - i))));
  int32_t lanes[kLanes];
  store(top, lanes);
  float largest;
  std::memcpy(&largest, std::max_element(lanes, lanes + kLanes), sizeof largest);
  const float factor = kLargest / largest;
  if (!std::isfinite(largest) || !std::isfinite(factor)) {  // zeros have no factor, and nor have numbers near them
    std::fill(to, to + k, static_cast<uint8_t>(kZero));
    return std::isfinite(largest) ? 0.f : std::numeric_limits<float>::quiet_NaN();
  }
  for (int64_t i = 0; i < k; i += kLanes) {
    const Ints numbers = to_nearest(load_some(from + i, k - i) * Vec(factor)) + all(kZero);
    uint8_t line[kLanes];
    store(numbers, k - i >= kLanes ? to + i : line);
    if (k - i < kLanes) std::copy_n(line, k - i, to + i);
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
  TORCH_CHECK(!numbers.numel() || numbers.min().item<int8_t>() >= -static_cast<int8_t>(kLargest), "integers below -127");
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
    for (int64_t j = 0; j < columns; j += kLanes) {
      const Ints sum = load_ints(sums + r * columns + j) - (exact ? load_ints(zeros + j) : all(0));
      (to_floats(sum) * (Vec(scales[r]) * Vec::loadu(factors + j))).store(tile + r * columns + j);
    }
  }
}

}  // namespace assay
