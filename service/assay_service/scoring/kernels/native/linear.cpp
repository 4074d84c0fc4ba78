// Linear layers over packed weights. A task multiplies a panel of columns by a block of rows over all of k, so each
// number is one sum in one order.
#include <torch/library.h>

#include "integer.h"

namespace assay {
namespace {

constexpr int64_t kRows = 256;     // most rows in a block: they stay in the second-level cache while panels pass
constexpr int64_t kColumns = 128;  // most columns in a panel
constexpr int64_t kStep = 32;
constexpr int64_t kDepth = 512;    // inputs in a step of fp32 products: that part of a panel stays in the cache

// Returns the number of rows in a block, such that all threads get equally many blocks of about the same size. It is a
// multiple of kStep, because oneDNN compiles a kernel for every number of rows.
int64_t rows_of(int64_t m) {
  const int64_t threads = at::get_num_threads(), rounds = (m + threads * kRows - 1) / (threads * kRows);
  const int64_t rows = (m + threads * rounds - 1) / (threads * rounds);
  return (rows + kStep - 1) / kStep * kStep;
}

int64_t columns_of(int64_t n) { return std::min(kColumns, (n + kLanes - 1) / kLanes * kLanes); }

// Packs a weight [N, K] -> [panels, K / pair, columns, pair]; columns beyond N are zero. With `widened` the products will
// be fp32 whatever the type of the weight, and nothing is paired.
at::Tensor pack(const at::Tensor& weight, bool widened) {
  const int64_t n = weight.size(0), k = weight.size(1), columns = columns_of(n);
  const int64_t pair = weight.element_size() == 2 && !widened ? 2 : 1, panels = (n + columns - 1) / columns;
  TORCH_CHECK(k % pair == 0, "an odd number of inputs cannot be packed");
  auto padded = at::zeros({panels * columns, k}, weight.options());
  padded.narrow(0, 0, n).copy_(weight);
  return padded.view({panels, columns, k / pair, pair}).permute({0, 2, 1, 3}).contiguous();
}

// Packs a weight of integers; see `pack_integers`.
at::Tensor pack_rounded(const at::Tensor& numbers, const at::Tensor& scales) {
  return pack_integers(numbers, scales, columns_of(numbers.size(0)));
}

// Widens a part of a panel to fp32, which is exact.
template <typename W>
void widen(const at::Tensor& packed, int64_t from, int64_t count, float* to) {
  const W* data = packed.const_data_ptr<W>() + from;
  for (int64_t i = 0; i < count; i += kLanes) load(data + i).store(to + i);
}

// The products of one thread: rows of an input with panels of weights, which have its type or are widened to fp32. Weights
// of integers are multiplied with the input as integers, `rounded`.
template <typename T>
struct Products {
  const at::Tensor& x;
  at::TensorList weights;
  Quantised* rounded;
  const Unit<T> unit{};
  Growing<float> space{};
  Growing<int32_t> sums{};

  // Computes rows [rows, k] times a panel of weight `w`, fp32 [rows, columns]. fp32 products are cut into steps of k, and
  // so are widened ones, which therefore have the same bits.
  void compute(int64_t row, int64_t rows, int64_t panel, size_t w, float* tile) {
    const int64_t k = x.size(1), columns = weights[w].size(2), step = kPair<T> == 1 ? kDepth : k;
    if constexpr (std::is_same_v<T, float>) {
      if (rounded) {
        const int8_t* start = weights[w].const_data_ptr<int8_t>() + panel * (k + kBeside) * columns;
        const Unit<at::BFloat16> matrix_unit;
        return multiply_integers(rows, columns, k, rounded->numbers.get() + row * k, rounded->scales.get() + row, start,
                                 sums.get(rows * columns), tile);
      }
    }
    const T* in = x.const_data_ptr<T>() + row * k;
    for (int64_t first = 0; first < k; first += step) {
      const int64_t depth = std::min(step, k - first), from = (panel * k + first) * columns;
      multiply<T>(rows, columns, depth, in + first, k, read(weights[w], from, depth * columns), tile, first > 0);
    }
  }

 private:
  // Returns numbers of a weight, widened where it is narrower than the input.
  const T* read(const at::Tensor& weight, int64_t from, int64_t count) {
    if (weight.scalar_type() == x.scalar_type()) return weight.const_data_ptr<T>() + from;
    if constexpr (std::is_same_v<T, float>) {
      float* wide = space.get(count);
      weight.scalar_type() == at::kHalf ? widen<at::Half>(weight, from, count, wide) : widen<at::BFloat16>(weight, from, count, wide);
      return wide;
    }
    TORCH_CHECK(false, "a weight wider than its input");
  }
};

// Computes the tiles of `weights`; `finish(column, width, to, line)` turns each of their lines into part of `out[m, n]`.
template <typename T, typename F>
void for_tiles(const at::Tensor& x, at::TensorList weights, T* out, int64_t n, const F& finish) {
  if (x.size(0) == 0) return;
  const int64_t m = x.size(0), panels = weights[0].size(0), columns = weights[0].size(2);
  const int64_t height = rows_of(m), blocks = (m + height - 1) / height, area = kRows * columns;
  std::optional<Quantised> rounded;
  if (weights[0].scalar_type() == at::kChar) rounded = quantise(x);
  at::parallel_for(0, blocks * panels, 1, [&](int64_t begin, int64_t end) {
    Products<T> products{x, weights, rounded ? &*rounded : nullptr};
    Scratch<float> tiles(weights.size() * area);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / panels * height, panel = task % panels, rows = std::min(height, m - row);
      const int64_t column = panel * columns, width = std::min(columns, n - column);
      T* to = out + row * n + column;
      for (size_t w = 0; w < weights.size(); ++w) products.compute(row, rows, panel, w, tiles.get() + w * area);
      for (int64_t i = 0; i < rows; ++i) finish(column, width, to + i * n, tiles.get() + i * columns);
    }
  });
}

void check(const at::Tensor& x, const at::Tensor& packed, int64_t n) {
  const bool paired = x.scalar_type() == packed.scalar_type() && packed.size(3) == (x.element_size() == 2 ? 2 : 1);
  const bool widened = x.scalar_type() == at::kFloat && packed.element_size() == 2 && packed.size(3) == 1;
  const bool integers = x.scalar_type() == at::kFloat && packed.scalar_type() == at::kChar;
  const int64_t beside = integers ? kBeside : 0;
  TORCH_CHECK((paired || widened || integers) && x.size(-1) == packed.size(1) * packed.size(3) - beside, "input ",
              x.sizes(), " ", x.scalar_type(), " does not fit the weight");
  const int64_t columns = columns_of(n);
  TORCH_CHECK(columns == packed.size(2) && (n + columns - 1) / columns == packed.size(0), n, " outputs do not fit the weight");
}

// Computes y = x W^T (+ bias), or adds it to y. The sum is rounded once, at the end.
void multiply_into(at::Tensor& y, const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& bias, bool add) {
  const int64_t n = y.size(-1);
  check(x, packed, n);
  TORCH_CHECK(!bias || (bias->scalar_type() == at::kFloat && bias->numel() == n && bias->is_contiguous()), "bias");
  const auto flat = x.reshape({-1, x.size(-1)}).contiguous();
  TORCH_CHECK(y.is_contiguous() && y.scalar_type() == x.scalar_type() && y.numel() == flat.size(0) * n, "output");
  with_type(x, [&](auto type) {
    using T = decltype(type);
    const float* b = bias ? bias->const_data_ptr<float>() : nullptr;
    for_tiles<T>(flat, {packed}, y.mutable_data_ptr<T>(), n, [&](int64_t column, int64_t width, T* to, float* line) {
      if (b) for (int64_t j = 0; j < width; ++j) line[j] += b[column + j];
      if (add) {
        int64_t j = 0;
        for (; j + kLanes <= width; j += kLanes) (Vec::loadu(line + j) + load(to + j)).store(line + j);
        for (; j < width; ++j) line[j] += static_cast<float>(to[j]);
      }
      store(line, to, width);
    });
  });
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& bias, int64_t n) {
  auto shape = x.sizes().vec();
  shape.back() = n;
  auto y = at::empty(shape, x.options());
  multiply_into(y, x, packed, bias, false);
  return y;
}

void linear_add(at::Tensor& y, const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& bias) {
  multiply_into(y, x, packed, bias, true);
}

Vec silu(const Vec& x) { return times_sigmoid(x, x); }

// The tanh approximation of GELU: x * (1 + tanh(u)) / 2 = x * sigmoid(2 u).
Vec gelu_tanh(const Vec& x) {
  return times_sigmoid(x, Vec(2 * 0.7978845608028654f) * (x + Vec(0.044715f) * x * x * x));
}

Vec gate_of(const Vec& x, bool gelu) { return gelu ? gelu_tanh(x) : silu(x); }

// Computes act(x G^T) * (x U^T), rounded once.
at::Tensor gated(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up, bool gelu, int64_t n) {
  check(x, gate, n);
  check(x, up, n);
  TORCH_CHECK(gate.scalar_type() == up.scalar_type(), "gate and up differ");
  const auto flat = x.reshape({-1, x.size(-1)}).contiguous();
  auto shape = x.sizes().vec();
  shape.back() = n;
  auto y = at::empty(shape, x.options());
  const int64_t columns = gate.size(2);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    for_tiles<T>(flat, {gate, up}, y.mutable_data_ptr<T>(), n, [&](int64_t, int64_t width, T* to, float* line) {
      const float* other = line + kRows * columns;
      for (int64_t j = 0; j < columns; j += kLanes) {
        const Vec g = Vec::loadu(line + j);
        (gate_of(g, gelu) * Vec::loadu(other + j)).store(line + j);
      }
      store(line, to, width);
    });
  });
  return y;
}

// Computes act(gate) * up for products that were already rounded, a row at a time. Each row is padded with zeros to whole
// vectors, so that no remainder takes another code path.
at::Tensor gate(const at::Tensor& gates, const at::Tensor& ups, bool gelu) {
  TORCH_CHECK(gates.sizes() == ups.sizes() && gates.scalar_type() == ups.scalar_type(), "gates and ups differ");
  const auto a = gates.contiguous(), b = ups.contiguous();
  auto y = at::empty_like(a);
  const int64_t n = a.size(-1), rows = n ? a.numel() / n : 0, padded = (n + kLanes - 1) / kLanes * kLanes;
  with_type(a, [&](auto type) {
    using T = decltype(type);
    const T *from = a.const_data_ptr<T>(), *with = b.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      Scratch<float> lines(2 * padded);
      float *g = lines.get(), *u = g + padded;
      std::fill(g, g + 2 * padded, 0.f);
      for (int64_t row = begin; row < end; ++row) {
        std::copy_n(from + row * n, n, g);
        std::copy_n(with + row * n, n, u);
        for (int64_t j = 0; j < n; j += kLanes) (gate_of(Vec::loadu(g + j), gelu) * Vec::loadu(u + j)).store(g + j);
        store(g, to + row * n, n);
      }
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(assay, m) {
  m.def("pack(Tensor weight, bool widened=False) -> Tensor", pack);
  m.def("pack_integers(Tensor numbers, Tensor scales) -> Tensor", pack_rounded);
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, int n) -> Tensor", linear);
  m.def("linear_add(Tensor(a!) y, Tensor x, Tensor packed, Tensor? bias) -> ()", linear_add);
  m.def("gate(Tensor gates, Tensor ups, bool gelu) -> Tensor", gate);
  m.def("gated(Tensor x, Tensor gate, Tensor up, bool gelu, int n) -> Tensor", gated);
}

}  // namespace assay
