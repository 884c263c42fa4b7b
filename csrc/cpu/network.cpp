// The whole network on the CPU: its layers, its input checks, and the loop over a batch's images.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../host_checks.h"
#include "amx_stream.h"
#include "isa.h"
#include "pixels.h"
#include "stream.h"
#include "workspace.h"

namespace espan::cpu {
namespace {

constexpr const char* kOp = "espan::network";
constexpr int64_t kMean = 16;  // floats before the weights; the first 3 are the mean colour

struct Description {
  int64_t channels, head_kernel;
  std::vector<int64_t> convs;  // per block: 2 or 3
  bool concat_activation;      // concatenate the last block's first activation (SPAN)
  int64_t scale;
};

// The layers in the order in which espan_kernels/network.py packs their weights.
Layers network_layers(const Description& d, Form form, const float* weights) {
  const int64_t c = d.channels;
  Layers layers(weights, form);
  int last = layers.head(c, d.head_kernel);
  int side = layers.pointwise(c, last, -1);
  for (size_t block = 0; block < d.convs.size(); ++block) {
    const int first_activation = layers.conv(c, last, Activation::silu);
    int o = first_activation;
    for (int64_t i = 2; i < d.convs[block]; ++i) o = layers.conv(c, o, Activation::silu);
    last = layers.conv(c, o, Activation::gate, last);
    if (block == 0) side = layers.pointwise(c, last, side);
    if (d.concat_activation && block + 1 == d.convs.size())
      side = layers.pointwise(c, first_activation, side);
  }
  const int fused = layers.conv(c, last, Activation::add, side);
  layers.upsample(c, d.scale, fused);
  return layers;
}

void check(const Tensor& image, const Tensor& packed, const Description& d) {
  const ScalarType dtype = image.scalar_type();
  if (dtype != ScalarType::Byte && dtype != ScalarType::Float)
    fail(kOp, "image has dtype ", dtype_name(image), "; it must be uint8 or float32");
  if (image.dim() != 4 || image.size(1) != 3)
    fail(kOp, "image has shape ", shape_name(image), "; it must be [N, 3, H, W]");
  if (!packed.is_cpu()) fail(kOp, "packed is on ", device_name(packed), "; it must be on cpu");
  if ((packed.scalar_type() != ScalarType::Float && packed.scalar_type() != ScalarType::BFloat16) ||
      packed.dim() != 1 || !packed.is_contiguous())
    fail(kOp, "packed must be a contiguous 1-D float32 or bfloat16 tensor from pack_network");
  if (d.channels < 1 || d.scale < 1 || d.head_kernel < 1 || d.head_kernel % 2 == 0)
    fail(kOp, "channels and scale must be at least 1, head_kernel odd; got ", d.channels, ", ",
         d.scale, ", ", d.head_kernel);
  if (d.convs.empty()) fail(kOp, "convs must have an entry for each block");
  for (int64_t n : d.convs)
    if (n != 2 && n != 3) fail(kOp, "convs must be 2 or 3 for each block; got ", n);
}

// The number of packed values: fp32, or bf16 with two to a float.
int64_t packed_size(const Description& d, Form form) {
  return (kMean + network_layers(d, form, nullptr).size()) * (form == Form::winograd ? 1 : 2);
}

// Infers the form of the weights from their dtype and size.
Form form_of(const Tensor& packed, const Description& d) {
  if (packed.scalar_type() == ScalarType::Float) {
    if (packed.numel() != packed_size(d, Form::winograd))
      fail(kOp, "packed has ", packed.numel(), " values; for this network it must have ",
           packed_size(d, Form::winograd));
    return Form::winograd;
  }
  for (Form form : {Form::bfloat16, Form::bfloat16x3}) {
    if (packed.numel() != packed_size(d, form)) continue;
    if (isa() != Isa::amx)
      fail(kOp, "packed is for the CPU path amx, but the path in use is ", name(isa()),
           "; pack the weights again");
    return form;
  }
  fail(kOp, "packed has ", packed.numel(), " values; for this network it must have ",
       packed_size(d, Form::bfloat16x3), ", or ", packed_size(d, Form::bfloat16),
       " if rounded to bfloat16");
}

std::tuple<Tensor, Tensor> network(const Tensor& image, const Tensor& packed, int64_t channels,
                                   int64_t head_kernel, std::vector<int64_t> convs,
                                   bool concat_activation, int64_t scale) {
  const Description d{channels, head_kernel, std::move(convs), concat_activation, scale};
  check(image, packed, d);
  const Form form = form_of(packed, d);
  const int64_t n = image.size(0), height = image.size(2), width = image.size(3);
  const bool bytes = image.scalar_type() == ScalarType::Byte;
  // uint8 output is interleaved, as image files are; float output is planar, as tensors are.
  const auto layout = bytes ? torch::headeronly::MemoryFormat::ChannelsLast
                            : torch::headeronly::MemoryFormat::Contiguous;
  Tensor out = torch::stable::empty({n, 3, scale * height, scale * width}, image.scalar_type(),
                                    std::nullopt, std::nullopt, std::nullopt, layout);
  // Without huge pages, page faults of a large output took 15% of the time.
  prefer_huge_pages(out.data_ptr(), out.numel() * size_of(element_of(out)));
  Tensor ranges = torch::stable::empty({n, 3}, ScalarType::Float);
  if (image.numel() == 0) return {out, torch::stable::fill_(ranges, 0.0)};

  const float* mean = static_cast<const float*>(packed.data_ptr());
  const Layers layers = network_layers(d, form, mean + kMean);
  float* range = ranges.mutable_data_ptr<float>();
  const auto run_batch = [&](const auto& stream) {
    for (int64_t i = 0; i < n; ++i, range += 3) {
      const Range r = stream.run({image_at(image, i), image_at(out, i), mean});
      range[0] = r.low;
      range[1] = r.high;
      range[2] = r.finite == 0 ? 0 : 1;
    }
  };
  if (form == Form::winograd)
    run_batch(Stream(layers, height, width));
  else
    run_batch(AmxStream(layers, height, width));
  return {out, ranges};
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) { m.impl("network", TORCH_BOX(&espan::cpu::network)); }
