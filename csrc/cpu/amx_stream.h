// Runs layers on images as stream.h does, by direct convolution on the matrix unit (AMX).
#pragma once

#include "network_plan.h"
#include "network_tasks.h"
#include "workspace.h"

namespace espan::cpu {

class AmxStream {
 public:
  // `layers`, in one of the forms of tiles, must outlive it.
  AmxStream(const Layers& layers, int64_t height, int64_t width);
  AmxStream(const AmxStream&) = delete;
  ~AmxStream();

  // As Stream::run.
  Range run(const Images& images) const;

 private:
  Plan plan_;
  bool both_;  // whether feature maps are kept as both halves
  int64_t threads_;
  Workspace workspace_;
};

}  // namespace espan::cpu
