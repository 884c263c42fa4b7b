// The whole network on the CPU: its layers, its input checks, and the loop over a batch's images.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../host_checks.h"
#include "amx_stream.h"
#include "image_rows.h"
#include "isa.h"
#include "pixels.h"
#include "stream.h"
#include "workspace.h"

namespace espan::cpu {
namespace {

constexpr const char* kOp = "espan::network";
constexpr int64_t kMean = 16;  // floats before the weights; the first 3 are the mean colour

// A layer is kNumbers numbers: kind, input, other, activation, outputs, kernel, as
// espan_kernels/network.py writes them.
constexpr int64_t kNumbers = 6;
constexpr int64_t kMost = 4096;  // channels, so that sizes cannot overflow

struct Description {
  std::vector<int64_t> numbers;
  int64_t unshuffle, scale;
};

// Fails unless the layers are a network: each reads layers before it that have the right channels,
// and all but the last, which writes the image, are read.
void check_layer(const std::vector<Layer>& before, const Layer& l, const Description& d) {
  const int index = static_cast<int>(before.size());
  const auto outputs_of = [&](int i) { return before[i].outputs; };
  const auto bad = [&](const char* why) { fail(kOp, "layer ", index, " ", why); };
  if (l.outputs < 1 || l.outputs > kMost) bad("must have 1 to 4096 outputs");
  if (l.reads_image() != (l.input == -1) || l.input < -1 || l.input >= index)
    bad("must read a layer before it, or the image if it is an image or a head");
  if (l.other < -1 || l.other >= index) bad("must add or gate with a layer before it, or -1");
  if (l.other != -1 && before[l.other].kind == Layer::image)
    bad("cannot add or gate with an image layer");
  if (l.adds() && before[l.other].activation != Activation::none)
    bad("cannot start its sums from a layer with an activation");
  if (l.kernel % 2 == 0 || l.kernel < 1 || l.kernel > 99) bad("must have an odd kernel below 100");
  if (l.kind == Layer::image && l.outputs != 3 * d.unshuffle * d.unshuffle)
    bad("must have 3 unshuffle^2 outputs");
  if (l.kind == Layer::head && d.unshuffle != 1) bad("cannot read an unshuffled image");
  if (l.writes_image() && l.outputs != 3 * d.scale * d.scale) bad("must have 3 scale^2 outputs");
  const bool gate = l.activation >= Activation::gate_sigmoid;
  const bool reads_other = gate || l.activation == Activation::add || l.kind == Layer::depthwise;
  if (reads_other ? l.other == -1 : l.other != -1 && l.kind != Layer::pointwise)
    bad("must have a layer to add or gate with exactly if its activation does that");
  if (l.kind == Layer::depthwise) {
    if (outputs_of(l.other) % 16 != 0) bad("needs a multiple of 16 channels in its first operand");
  } else if (l.other != -1 && outputs_of(l.other) != l.outputs) {
    bad("must have as many outputs as the layer that it adds or gates with");
  }
  if (l.kind != Layer::conv && (gate || l.activation == Activation::add))
    bad("cannot add or gate: only a conv can");
  if (l.kind != Layer::conv && l.kind != Layer::head && l.activation != Activation::none)
    bad("cannot have an activation");
}

constexpr int kAsFeatures = 1, kAsSums = 2;

std::vector<Layer> parse(const Description& d) {
  if (d.unshuffle < 1 || d.unshuffle > 16 || d.scale < 1 || d.scale > 32)
    fail(kOp, "unshuffle must be 1 to 16 and scale 1 to 32; got ", d.unshuffle, ", ", d.scale);
  if (d.numbers.empty() || d.numbers.size() % kNumbers != 0)
    fail(kOp, "layers must have 6 numbers for each layer; got ", d.numbers.size());
  std::vector<Layer> layers;
  std::vector<int> read;  // as features, or to start sums from it
  for (size_t at = 0; at < d.numbers.size(); at += kNumbers) {
    const int64_t* n = d.numbers.data() + at;
    for (int64_t i = 0; i < kNumbers; ++i)
      if (n[i] < -1 || n[i] > kMost) fail(kOp, "layer ", layers.size(), " has the number ", n[i]);
    if (n[0] < 0 || n[0] > Layer::depthwise || n[3] < 0 ||
        n[3] > static_cast<int64_t>(Activation::gate_tanh))
      fail(kOp, "layer ", layers.size(), " is of no known kind or activation");
    Layer l{};
    l.kind = static_cast<Layer::Kind>(n[0]);
    l.input = static_cast<int>(n[1]);
    l.other = static_cast<int>(n[2]);
    l.activation = static_cast<Activation>(n[3]);
    l.outputs = n[4];
    l.kernel = n[5];
    check_layer(layers, l, d);
    l.inputs = l.input < 0 ? 3 : layers[l.input].outputs;
    if (l.kind == Layer::depthwise) l.inputs += layers[l.other].outputs;
    const auto mark = [&](int source, int way) {
      if (source < 0) return;
      if (read[source] != 0 && read[source] != way)
        fail(kOp, "layer ", source, " is added to one layer and read otherwise by another");
      read[source] = way;
    };
    mark(l.input, kAsFeatures);
    mark(l.other, l.adds() ? kAsSums : kAsFeatures);
    read.push_back(l.writes_image() ? kAsFeatures : 0);
    layers.push_back(l);
    if (l.writes_image() != (at + kNumbers == d.numbers.size()))
      fail(kOp, "the last layer, and no other, must write the image");
  }
  for (size_t i = 0; i < read.size(); ++i)
    if (read[i] == 0) fail(kOp, "layer ", i, " is not read by any other");
  return layers;
}

Layers network_layers(const std::vector<Layer>& parsed, Form form, const float* weights) {
  Layers layers(weights, form);
  for (const Layer& layer : parsed) layers.add(layer);
  return layers;
}

void check(const Tensor& image, const Tensor& packed, int64_t unshuffle) {
  const ScalarType dtype = image.scalar_type();
  if (dtype != ScalarType::Byte && dtype != ScalarType::Float)
    fail(kOp, "image has dtype ", dtype_name(image), "; it must be uint8 or float32");
  if (image.dim() != 4 || image.size(1) != 3)
    fail(kOp, "image has shape ", shape_name(image), "; it must be [N, 3, H, W]");
  if (image.numel() > 0 && (image.size(2) < unshuffle || image.size(3) < unshuffle))
    fail(kOp, "image has shape ", shape_name(image), "; height and width must be at least ",
         unshuffle, " to be unshuffled");
  if (!packed.is_cpu()) fail(kOp, "packed is on ", device_name(packed), "; it must be on cpu");
  if ((packed.scalar_type() != ScalarType::Float && packed.scalar_type() != ScalarType::BFloat16) ||
      packed.dim() != 1 || !packed.is_contiguous())
    fail(kOp, "packed must be a contiguous 1-D float32 or bfloat16 tensor from pack_network");
}

// The number of packed values: fp32, or in the other forms bf16, with two to a float.
int64_t packed_size(const std::vector<Layer>& layers, Form form) {
  return (kMean + network_layers(layers, form, nullptr).size()) * (form == Form::winograd ? 1 : 2);
}

// Infers the form of the weights from their dtype and size.
Form form_of(const Tensor& packed, const std::vector<Layer>& layers) {
  if (packed.scalar_type() == ScalarType::Float) {
    if (packed.numel() != packed_size(layers, Form::winograd))
      fail(kOp, "packed has ", packed.numel(), " values; for this network it must have ",
           packed_size(layers, Form::winograd));
    return Form::winograd;
  }
  for (Form form : {Form::winograd_bfloat16, Form::bfloat16, Form::bfloat16x3}) {
    if (packed.numel() != packed_size(layers, form)) continue;
    const Isa path = by_winograd(form) ? Isa::avx512 : Isa::amx;
    if (isa() != path)
      fail(kOp, "packed is for the CPU path ", name(path), ", but the path in use is ", name(isa()),
           "; pack the weights again");
    if (!has_bfloat16())
      fail(kOp, "packed is for processors with avx512_bf16; pack the weights again");
    return form;
  }
  fail(kOp, "packed has ", packed.numel(), " values; for this network it must have ",
       packed_size(layers, Form::winograd_bfloat16),
       " in bfloat16 for the CPU path avx512; for amx ", packed_size(layers, Form::bfloat16x3),
       ", or ", packed_size(layers, Form::bfloat16), " if rounded to bfloat16");
}

std::tuple<Tensor, Tensor> network(const Tensor& image, const Tensor& packed,
                                   std::vector<int64_t> numbers, int64_t unshuffle, int64_t scale) {
  const std::vector<Layer> parsed = parse({std::move(numbers), unshuffle, scale});
  check(image, packed, unshuffle);
  const Form form = form_of(packed, parsed);
  const int64_t n = image.size(0);
  const int64_t height = unshuffled(image.size(2), unshuffle);
  const int64_t width = unshuffled(image.size(3), unshuffle);
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
  const Layers layers = network_layers(parsed, form, mean + kMean);
  float* range = ranges.mutable_data_ptr<float>();
  const auto run_batch = [&](const auto& stream) {
    for (int64_t i = 0; i < n; ++i, range += 3) {
      const Range r = stream.run(
          {image_at(image, i), image_at(out, i), mean, image.size(2), image.size(3), unshuffle});
      range[0] = r.low;
      range[1] = r.high;
      range[2] = r.finite == 0 ? 0 : 1;
    }
  };
  if (by_winograd(form))
    run_batch(Stream(layers, height, width));
  else
    run_batch(AmxStream(layers, height, width));
  return {out, ranges};
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) { m.impl("network", TORCH_BOX(&espan::cpu::network)); }
