// Runs layers on images as Stream does, by direct convolution on the matrix unit (AMX).
#pragma once

#include "network_plan.h"
#include "network_tasks.h"
#include "workspace.h"

namespace espan::cpu {

class AmxStream {
 public:
  // `layers`, in a tiled form, must outlive this object.
  AmxStream(const Layers& layers, int64_t height, int64_t width);
  AmxStream(const AmxStream&) = delete;

  // Returns the range of the output before it is clamped.
  Range run(const Images& images) const;

 private:
  Plan plan_;
  bool both_;  // whether feature maps have both halves
  int64_t threads_;
  Workspace workspace_;
};

}  // namespace espan::cpu
