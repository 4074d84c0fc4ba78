// Log-probabilities of tokens under an output layer, without a matrix of all logits. In a tile the ids of the vocabulary
// are rows and the tokens are columns. The weight is then read as it is stored, and a lane of a vector is one token.
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "common.h"

namespace assay {
namespace {

constexpr int64_t kTokens = 64;  // tokens in a panel, filled up with zeros: the same kernel computes every token
constexpr int64_t kIds = 256;    // ids in a block: their weights stay in the second-level cache while panels pass
constexpr int64_t kVectors = kTokens / kLanes;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Packs states [n, K] -> [panels, K / pair, 64, pair], as oneDNN reads them.
at::Tensor pack_tokens(const at::Tensor& states) {
  const int64_t n = states.size(0), k = states.size(1), panels = (n + kTokens - 1) / kTokens;
  const int64_t pair = states.element_size() == 2 ? 2 : 1;
  TORCH_CHECK(k % pair == 0, "an odd number of inputs cannot be packed");
  auto padded = at::zeros({panels * kTokens, k}, states.options());
  padded.narrow(0, 0, n).copy_(states);
  return padded.view({panels, kTokens, k / pair, pair}).permute({0, 2, 1, 3}).contiguous();
}

// Writes the largest logit of each token in a tile [ids, 64], and the sum of all exponentials relative to it.
void reduce(const float* tile, int64_t ids, float* largest, float* total) {
  Vec top[kVectors];
  Vec sums[kVectors];
  std::fill(top, top + kVectors, Vec(kLowest));
  std::fill(sums, sums + kVectors, Vec(0.f));
  for (int64_t i = 0; i < ids; ++i)  // the maximum ignores a NaN, but the sum below keeps it
    for (int64_t v = 0; v < kVectors; ++v) top[v] = max(Vec::loadu(tile + i * kTokens + kLanes * v), top[v]);
  for (int64_t i = 0; i < ids; ++i)
    for (int64_t v = 0; v < kVectors; ++v)
      sums[v] = sums[v] + power_of_2((Vec::loadu(tile + i * kTokens + kLanes * v) - top[v]) * Vec(kLog2E));
  for (int64_t v = 0; v < kVectors; ++v) {
    top[v].store(largest + kLanes * v);
    sums[v].store(total + kLanes * v);
  }
}

// Returns the log-probability of a token from the logit of its id and the results of all blocks, which are `step` apart.
float normalize(float logit, const float* largest, const float* total, int64_t blocks, int64_t step) {
  float top = kLowest, sum = 0;
  for (int64_t b = 0; b < blocks; ++b) top = std::max(top, largest[b * step]);
  for (int64_t b = 0; b < blocks; ++b) sum += total[b * step] * std::exp(largest[b * step] - top);
  return (logit - top) - std::log(sum);  // in this order: log(sum) would vanish beside a large logit
}

// Returns log p(target) for each state, fp32 [n], for states [n, K] and a weight [V, K]; -inf for an id without a row.
at::Tensor log_probabilities(const at::Tensor& states, const at::Tensor& weight, const at::Tensor& targets) {
  TORCH_CHECK(states.dim() == 2 && weight.dim() == 2 && states.size(1) == weight.size(1) && weight.is_contiguous() &&
                  states.scalar_type() == weight.scalar_type(), "states ", states.sizes(), " do not fit the weight");
  const int64_t n = states.size(0), k = states.size(1), ids = weight.size(0), blocks = (ids + kIds - 1) / kIds;
  TORCH_CHECK(targets.scalar_type() == at::kLong && targets.dim() == 1 && targets.size(0) == n && targets.is_contiguous(), "targets");
  const auto packed = pack_tokens(states);
  const int64_t panels = packed.size(0), width = panels * kTokens;
  auto found = at::full({n}, kLowest, states.options().dtype(at::kFloat));
  Scratch<float> largest(blocks * width), total(blocks * width);
  float* out = found.mutable_data_ptr<float>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  with_type(weight, [&](auto type) {
    using T = decltype(type);
    const T *rows = weight.const_data_ptr<T>(), *columns = packed.const_data_ptr<T>();
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      const Unit<T> unit;
      Scratch<float> tile(kIds * kTokens);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kIds, count = std::min(kIds, ids - first);
        for (int64_t panel = 0; panel < panels; ++panel) {
          multiply<T>(count, kTokens, k, rows + first * k, k, columns + panel * kTokens * k, tile.get());
          const int64_t start = panel * kTokens, at = block * width + start, tokens = std::min(kTokens, n - start);
          for (int64_t j = 0; j < tokens; ++j) {
            const int64_t id = target[start + j] - first;
            if (id >= 0 && id < count) out[start + j] = tile.get()[id * kTokens + j];
          }
          reduce(tile.get(), count, largest.get() + at, total.get() + at);
        }
      }
    });
  });
  at::parallel_for(0, n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      out[j] = normalize(out[j], largest.get() + j, total.get() + j, blocks, width);
    }
  });
  return found;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(assay, m) {
  m.def("log_probabilities(Tensor states, Tensor weight, Tensor targets) -> Tensor", log_probabilities);
}

}  // namespace assay
